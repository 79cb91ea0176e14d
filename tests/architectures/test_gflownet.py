"""GFlowNets: environments, exact distributions, flow losses, orders, and search at a counted budget."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gossamer.architectures import Evaluator, OneOf, SearchSpace, Subset
from gossamer.architectures.cells import cell_space
from gossamer.architectures.gflownet import (
    Flow,
    GFlowNet,
    HyperGrid,
    OrderLoss,
    Policy,
    Sequences,
    SlotFill,
    Tabular,
    Training,
    exact_distribution,
    fit,
    listwise,
    non_dominated,
    pairwise,
    search_gflownet,
)
from gossamer.architectures.gflownet.balance import log_inflow, loss, parents_kl
from gossamer.architectures.gflownet.memory import Memory
from gossamer.architectures.gflownet.order import layers
from gossamer.architectures.gflownet.rollout import Logs, backward, sample
from gossamer.architectures.random_search import random_search
from gossamer.errors import ConfigError, NumericsError, ShapeError

SPACE = SearchSpace((OneOf("a", ("x", "y")), OneOf("b", ("x", "y", "z")), OneOf("c", ("x", "y"))))
ENVS = {
    "grid": HyperGrid(4, 2),
    "cube": HyperGrid(3, 3),
    "edges": HyperGrid(4, 2, edge_stops=True),
    "words": Sequences(3, 3),
    "slots": SlotFill(SPACE),
}


class Stuck(HyperGrid):
    """Nothing may be done in the last corner."""

    def legal(self, states):
        return super().legal(states) & (states < self.side - 1).any(1, keepdim=True)


class Lost(HyperGrid):
    """The last corner is an object, and no action leads there."""

    def legal(self, states):
        allowed = super().legal(states)
        near = states.sum(1) == 2 * self.side - 3
        return torch.cat([allowed[:, :-1] & ~near[:, None], allowed[:, -1:]], 1)


class Endless(HyperGrid):
    """From an edge one comes out on the other side."""

    def legal(self, states):
        return torch.ones(len(states), self.actions, dtype=torch.bool)

    def step(self, states, actions):
        return super().step(states, actions) % self.side


def random_policy(env, **options):
    torch.manual_seed(0)
    policy = Tabular(env, **options)
    with torch.no_grad():
        policy.table.normal_()
    return policy


@pytest.mark.parametrize("name", ENVS)
def test_every_step_can_be_undone_and_indices_are_unique(name):
    env = ENVS[name]
    states = env.all_states()
    assert len(env.index(states).unique()) == len(states)
    assert int(env.index(states).max()) < env.size
    legal = env.legal(states)
    assert bool(legal.any(1).all())
    row, action = legal[:, :-1].nonzero(as_tuple=True)
    after = env.step(states[row], action)
    assert bool(env.undoable(after).gather(1, action[:, None]).all())
    assert torch.equal(env.undo(after, action), states[row])
    back_row, back_action = env.undoable(states).nonzero(as_tuple=True)
    assert len(back_row) == len(row)  # as many ways back as ways forward
    before = env.undo(states[back_row], back_action)
    assert bool(env.legal(before).gather(1, back_action[:, None]).all())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ENVS)
def test_exact_probabilities_sum_to_one_and_are_those_of_samples(name, learned):
    policy = random_policy(ENVS[name], learn_backward=learned)
    objects, chances = exact_distribution(policy)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-6)
    drawn = ENVS[name].index(sample(policy, 20_000, torch.Generator().manual_seed(1)).last)
    seen = torch.bincount(drawn, minlength=ENVS[name].size)[ENVS[name].index(objects)] / 20_000
    assert float((seen - chances).abs().max()) < 0.02


def all_ways(env, state):
    """Every (state, action) path from the start to `state`, by undoing."""
    able = env.undoable(state[None])[0].nonzero().flatten().tolist()
    if not able:
        return [[]]
    ways = []
    for action in able:
        before = env.undo(state[None], torch.tensor([action]))[0]
        ways += [[*way, (before, action)] for way in all_ways(env, before)]
    return ways


@torch.no_grad()
@pytest.mark.parametrize("name", ["grid", "edges", "slots"])
def test_ways_back_have_total_probability_one(name):
    env, policy = ENVS[name], Tabular(ENVS[name])
    target = env.all_states()[-1]
    total = 0.0
    for way in all_ways(env, target):
        log = 0.0
        for before, action in way:
            after = env.step(before[None], torch.tensor([action]))
            log += float(policy(after)[1][0, action])
        total += math.exp(log)
    assert total == pytest.approx(1, abs=1e-5)


def exact_flows(env, reward):
    """A table whose flows are right: F(s) = sum over children of F(s') P_B(s | s') + R(s)."""
    policy = Tabular(env)
    states = env.all_states()
    legal, flow = env.legal(states), torch.zeros(env.size, dtype=torch.float64)
    with torch.no_grad():
        for state, able in zip(states.flip(0), legal.flip(0), strict=True):
            edges = torch.full((env.actions,), -1e9, dtype=torch.float64)
            if bool(able[-1]):
                edges[-1] = reward(state[None])[0].log()
            for action in able[:-1].nonzero().flatten().tolist():
                after = env.step(state[None], torch.tensor([action]))
                back = policy(after)[1][0, action].double()
                edges[action] = flow[env.index(after)[0]].log() + back
            place = env.index(state[None])[0]
            flow[place] = edges.exp().sum()
            policy.table[place, : env.actions] = edges.float()
            policy.table[place, -1] = flow[place].log().float()
        policy.log_z.fill_(float(flow[env.index(env.start(1))[0]].log()))
    return policy


def positive(states):
    return 0.5 + states.double().clamp_min(0).sum(1) ** 2


@pytest.mark.parametrize("kind", ["tb", "db", "subtb", "fm"])
@pytest.mark.parametrize("name", ENVS)
def test_right_flows_have_no_loss_and_give_the_reward(name, kind):
    env = ENVS[name]
    policy = exact_flows(env, positive)
    objects, chances = exact_distribution(policy)
    wanted = positive(objects)
    torch.testing.assert_close(chances, wanted / wanted.sum(), rtol=1e-4, atol=1e-6)
    memory, rng = Memory(), torch.Generator().manual_seed(0)
    for rollout in (sample(policy, 64, rng, 0.5), backward(policy, objects, rng)):
        memory.add(rollout.last, positive)
        assert float(loss(policy, rollout, memory, Flow(kind, order=None), rng).detach()) < 1e-6
    wrong = random_policy(env)
    assert float(loss(wrong, rollout, memory, Flow(kind, order=None), rng).detach()) > 1e-2


@pytest.mark.parametrize("kind", ["tb", "db", "subtb", "fm"])
def test_every_loss_learns_the_reward(kind):
    env = HyperGrid(3, 2)
    net = GFlowNet(env, flow=Flow(kind, order=None))
    net.fit(positive, Training(steps=300, batch=32, lr=0.1, lr_z=0.1, explore=0.3))
    objects, chances = net.distribution()
    wanted = positive(objects)
    assert float((chances - wanted / wanted.sum()).abs().sum()) / 2 < 0.05


def test_backward_trajectories_end_where_they_should():
    for env in ENVS.values():
        policy = random_policy(env, learn_backward=True)
        objects, _ = exact_distribution(policy)
        rollout = backward(policy, objects, torch.Generator().manual_seed(0))
        states = env.start(len(objects))
        for before, actions, alive in zip(rollout.states, rollout.actions, rollout.alive, strict=True):
            assert torch.equal(before[alive], states[alive])
            moved = env.step(before, actions)
            states = torch.where(alive[:, None], moved, states)
        assert torch.equal(states, objects)


@torch.no_grad()
def test_log_probabilities_of_a_rollout_by_hand():
    env = ENVS["grid"]
    policy = random_policy(env, learn_backward=True)
    rollout = sample(policy, 6, torch.Generator().manual_seed(3))
    logs = Logs.of(policy, rollout)
    for n in range(6):
        state, ahead, back = env.start(1), 0.0, 0.0
        for t in range(int(rollout.alive[:, n].sum())):
            action = rollout.actions[t, n : n + 1]
            ahead += float(policy(state)[0][0, action])
            if int(action) < env.actions - 1:
                state = env.step(state, action)
                back += float(policy(state)[1][0, action])
        assert float(logs.forward[:, n].sum()) == pytest.approx(ahead, abs=1e-5)
        assert float(logs.backward[:, n].sum()) == pytest.approx(back, abs=1e-5)


@torch.no_grad()
def test_inflow_by_hand():
    env = ENVS["grid"]
    policy = random_policy(env)
    state = torch.tensor([[1, 1]])
    parents, actions = torch.tensor([[0, 1], [1, 0]]), [0, 1]
    ahead, _, flow = policy(parents)
    wanted = sum((flow[i] + ahead[i, a]).exp() for i, a in enumerate(actions)).log()
    assert float(log_inflow(policy, state)) == pytest.approx(float(wanted), abs=1e-5)


@torch.no_grad()
def test_parents_kl_is_zero_for_uniform_ways_back():
    env = ENVS["grid"]
    rollout = sample(Tabular(env), 16, torch.Generator().manual_seed(0))
    assert float(parents_kl(Tabular(env), rollout)) == pytest.approx(0, abs=1e-6)
    assert float(parents_kl(random_policy(env, learn_backward=True), rollout)) > 0.01


# ---- orders


@torch.no_grad()
def test_the_pairwise_loss_is_binary_cross_entropy_of_gaps():
    log_reward, score = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 1.0, 5.0])
    partner = torch.tensor([1, 2, 0])
    wanted = F.binary_cross_entropy_with_logits(torch.tensor([1.3, -3.0, 1.7]), torch.tensor([0.5, 0.0, 1.0]))
    assert float(pairwise(log_reward, score, partner)) == pytest.approx(float(wanted))
    level = pairwise(torch.zeros(4), torch.ones(4), torch.tensor([1, 0, 3, 2]))
    assert float(level) == pytest.approx(math.log(2))


def test_two_objects_drift_apart_without_end():
    gap = torch.tensor([50.0, 0.0]).requires_grad_()
    for difference in (-3.0, 0.0, 3.0):
        gap = torch.tensor([difference, 0.0], requires_grad=True)
        pairwise(gap, torch.tensor([2.0, 1.0]), torch.tensor([1, 0])).backward()
        assert -gap.grad[0].item() == pytest.approx(1 - 1 / (1 + math.exp(-difference)), abs=1e-6)


@torch.no_grad()
def test_the_listwise_loss_by_hand():
    log_reward = torch.tensor([0.5, -0.2, 1.0])
    everybody = listwise(log_reward, torch.tensor([True] * 3))
    assert float(everybody) == pytest.approx(float(-log_reward.log_softmax(0).mean()))
    one = listwise(log_reward, torch.tensor([False, True, False]))
    assert float(one) == pytest.approx(float(-log_reward.log_softmax(0)[1]))


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=14))
def test_fronts_are_those_of_brute_force(rows):
    scores = torch.tensor(rows, dtype=torch.float64)
    dominated = [any(all(b >= a for a, b in zip(x, y, strict=True)) and x != y for y in rows) for x in rows]
    assert non_dominated(scores).tolist() == [not d for d in dominated]
    rank = layers(scores)
    assert torch.equal(rank == 0, non_dominated(scores))
    for i, j in itertools.permutations(range(len(rows)), 2):
        if all(b >= a for a, b in zip(rows[i], rows[j], strict=True)) and rows[i] != rows[j]:
            assert rank[j] < rank[i]


def test_fronts_are_pymoos():
    nds = pytest.importorskip("pymoo.util.nds.non_dominated_sorting", reason="pymoo is not installed")
    scores = np.random.default_rng(0).normal(size=(60, 3))
    wanted = nds.NonDominatedSorting().do(-scores, only_non_dominated_front=True)
    assert non_dominated(torch.tensor(scores)).nonzero().flatten().tolist() == sorted(wanted.tolist())


def test_only_the_order_and_no_shift_of_log_z_matters():
    tables = []
    for bend, shift in ((lambda r: r, 0.0), (lambda r: (5 * r).exp(), 0.0), (lambda r: r, 7.0)):
        policy = Tabular(HyperGrid(4, 2))
        with torch.no_grad():
            policy.log_z.fill_(shift)
        fit(policy, lambda s, b=bend: b(positive(s) / 20), Flow(), Training(steps=30, batch=16))
        tables.append(policy.table.detach().clone())
    assert torch.equal(tables[0], tables[1])
    torch.testing.assert_close(tables[0], tables[2], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_global_order_knows_what_the_batch_does_not():
    scores, better = torch.tensor([[1.0, 1.0], [0.5, 2.0]]), torch.tensor([[2.0, 1.5]])
    log_reward = torch.tensor([0.0, 1.0], requires_grad=True)
    rng = torch.Generator()
    within = OrderLoss()(log_reward, scores, scores[:0], rng)
    overall = OrderLoss("global")(log_reward, scores, better, rng)
    assert float(within) == pytest.approx(float(listwise(log_reward, torch.tensor([True, True]))))
    assert float(overall) == pytest.approx(float(listwise(log_reward, torch.tensor([False, True]))))
    clamped = OrderLoss(max_gap=0.1)(log_reward, scores, scores[:0], rng)
    assert float(clamped) < float(within)


def test_what_is_replayed_is_good():
    objects = torch.arange(40)[:, None]
    for oracle, good in (
        (lambda o: o[:, 0].double(), set(range(36, 40))),  # the top tenth
        (lambda o: torch.stack([o[:, 0], -((o[:, 0] - 20) ** 2)], 1).double(), set(range(20, 40))),  # the front
    ):
        memory = Memory()
        memory.add(objects, oracle)
        drawn = memory.best(2000, torch.Generator().manual_seed(0))[:, 0].tolist()
        assert set(drawn[:1000]) == good
        assert set(drawn[1000:]) == set(range(40))


# ---- search


def test_search_spends_its_budget_once_and_finds_the_best(tmp_path):
    space = SearchSpace(tuple(OneOf(f"s{i}", ("a", "b", "c", "d")) for i in range(4)))
    evaluator = Evaluator(space, lambda a: float(sum(a)), 60, goal="max", file=tmp_path / "seen.json")
    history = search_gflownet(evaluator, warm=15, fresh=15, updates=40)
    assert len(history) == evaluator.spent == 60
    assert len({e.architecture for e in history}) == 60
    assert max(e.value for e in history) == 12.0
    again = Evaluator(space, lambda a: 1 / 0, 60, goal="max", file=tmp_path / "seen.json")
    assert search_gflownet(again, warm=15, fresh=15, updates=40) == history  # nothing is scored anew


def test_search_minimises_and_ends_with_a_small_space():
    evaluator = Evaluator(SPACE, lambda a: (float(sum(a)), -float(a[0])), 100, goal=("min", "max"))
    history = search_gflownet(evaluator, warm=4, fresh=4, updates=5)
    assert len(history) == SPACE.size


def test_the_published_space_has_the_published_size():
    cells = SearchSpace(tuple(OneOf(f"edge {i}", ("none", "skip", "1x1", "3x3", "pool")) for i in range(6)))
    env = SlotFill(cells)
    assert cells.size == 15_625
    assert env.actions == 31
    policy = Policy(env, learn_backward=True)
    fit(policy, lambda s: s.double().sum(1), Flow(kl=0.1), Training(steps=3, batch=8, lr=1e-3, replay=0.5, clip=10.0))


def test_the_space_of_cells_is_searched_by_chance_and_by_a_gflownet_alike():
    space = cell_space()
    assert SlotFill(space).size == 2**2 * 4**2 * 7**2 * 11**2 * 8**16  # and an empty slot each; beyond 64 bits
    with pytest.raises(ConfigError, match="states are too many"):
        Tabular(SlotFill(space))

    def convolutions(architecture):
        return sum("conv" in str(v) for v in space.describe(architecture).values())

    for search in (
        lambda e: search_gflownet(e, warm=6, fresh=3, updates=3),
        lambda e: random_search(space, draws=20, evaluator=e),
    ):
        evaluator = Evaluator(space, convolutions, 12, goal="max")
        search(evaluator)
        assert evaluator.spent == 12
        assert space.view(evaluator.best.architecture).edges


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: HyperGrid(1, 2), ConfigError, "at least 2 places"),
        (lambda: Sequences(1, 2), ConfigError, "at least 2 letters"),
        (lambda: SlotFill(SearchSpace((Subset("h", 4, 2),))), ConfigError, "slots of options"),
        (lambda: Tabular(HyperGrid(200, 3)), ConfigError, "8000000 states are too many"),
        (
            lambda: exact_distribution(Tabular(HyperGrid(8, 2)), limit=10),
            ConfigError,
            "64 states is beyond the limit of 10",
        ),
        (lambda: Training(0), ConfigError, "at least 1"),
        (lambda: Training(replay=2.0), ConfigError, r"shares in \[0, 1\]"),
        (lambda: GFlowNet(HyperGrid(3, 2), "tabula"), ConfigError, "did you mean 'tabular'"),
        (
            lambda: search_gflownet(Evaluator(SPACE, lambda a: 1.0, 4, goal="max"), fresh=0),
            ConfigError,
            "warm, fresh and updates",
        ),
        (lambda: Flow(decay=0.0), ConfigError, "decay of lengths"),
        (lambda: Flow("mb"), ConfigError, "one of .*tb.*got 'mb'"),
        (lambda: Flow(order=None, beta=-1.0), ConfigError, "exponent of the reward, must be positive, got -1"),
        (lambda: Flow("db", weight=-1.0), ConfigError, "weight and kl must be finite"),
        (lambda: GFlowNet(Stuck(3, 2)), ConfigError, r"Stuck: in state \[2, 2\] nothing is legal"),
        (lambda: GFlowNet(Lost(3, 2)), ConfigError, r"no way leads from the start to the object \[2, 2\]"),
        (lambda: GFlowNet(Endless(3, 2)), ConfigError, "ways must end"),
        (lambda: OrderLoss("best"), ConfigError, "'batch' or 'global'"),
        (lambda: OrderLoss(max_gap=0.0), ConfigError, "max_gap must be positive"),
        (
            lambda: OrderLoss()(torch.zeros(1), torch.zeros(1, 1), torch.zeros(0, 1), None),
            ConfigError,
            "at least 2 obj",
        ),
        (
            lambda: GFlowNet(HyperGrid(3, 2)).fit(lambda s: s.sum(1) * torch.nan, Training(1)),
            NumericsError,
            r"objective of \[.*\] is \[nan\]",
        ),
        (
            lambda: GFlowNet(HyperGrid(3, 2), flow=Flow(order=None)).fit(lambda s: -positive(s), Training(1)),
            ConfigError,
            "one positive number",
        ),
        (lambda: GFlowNet(HyperGrid(3, 2)).fit(lambda s: torch.zeros(1, 1, 1), Training(1)), ShapeError, "gave shape"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_equal_scores_are_warned_of():
    with pytest.warns(RuntimeWarning, match="their order says nothing"):
        GFlowNet(HyperGrid(3, 2)).fit(lambda s: torch.ones(len(s)), Training(1, batch=4))


def test_scores_that_change_their_number_are_refused():
    widths = itertools.cycle([1, 2])
    with pytest.raises(ShapeError, match="gave 2 numbers after 1"):
        GFlowNet(HyperGrid(30, 2)).fit(lambda s: torch.rand(len(s), next(widths)), Training(5, batch=8))
