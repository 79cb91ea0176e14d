"""Particles, their graph networks, and programs over rounds of messages."""

import numpy as np
import pytest
import torch

from gossamer.domains.dynamics import (
    Budget,
    Chain,
    GatedReLUMLP,
    Goal,
    GraphNetwork,
    Ladder,
    MILPPlanner,
    Particles,
    Problem,
    Pushing,
    Round,
    branch_and_bound,
    fit,
    rmse,
    sparsify,
)
from gossamer.domains.dynamics.model import REMOVED
from gossamer.domains.dynamics.program import solve
from gossamer.errors import ConfigError, ShapeError

ROPE = Particles("rope", 3, spacing=0.25)
PILE = Particles("pile", 3, placed=True)


def network(system, seed=0, passes=2, tool=(3,), pair=(2,)):
    """A random network; some of its neurons are no ReLUs."""
    torch.manual_seed(seed)
    made = system.network(tool, pair, passes).double()
    for part in made.parts():
        part.out_scale.fill_(0.1)
        part.scale.fill_(0.2)
        part.states[0] = seed % 3
    return made


def problem(system, net, horizon=1, band=None):
    target, weight = np.zeros(system.size), np.zeros(system.size)
    target[: 2 * system.bodies : 2], weight[: 2 * system.bodies] = 0.4, 1.0
    return Problem(net.dynamics(), horizon, system.u_box, Goal(target, weight, band=band))


def start(system):
    x = system.data(1, 0)[0][0].double().numpy()
    return x[: system.size]


@pytest.mark.parametrize("system", [ROPE, PILE], ids=lambda s: s.kind)
def test_the_dynamics_are_the_network(system):
    net, (z, _) = network(system), system.data(20, 1)
    z = z.double()
    x, u = z[:, : system.size], z[:, system.size :]
    after, outside = net.dynamics().step(x, u)
    learned = 2 * system.bodies
    torch.testing.assert_close(after[:, :learned] - x[:, :learned], net(z))
    assert float(outside.detach().sum()) == 0
    if not system.placed:
        torch.testing.assert_close(after[:, -2:], x[:, -2:] + u)


def test_the_rounds_are_their_loops():
    # an independent form of two passes over a rope: bodies one by one, from the messages' definition
    net, (z, _) = network(ROPE, 2), ROPE.data(1, 2)
    z = z.double()
    q, p, u = z[0, :6].view(3, 2).clone(), z[0, 6:8], z[0, 8:]
    tool, pair = net.net("tool"), net.net("pair")
    q = torch.stack([b + tool(torch.cat([b - p, u])[None])[0] for b in q])
    for _ in range(2):
        messages = [pair((q[i] - q[i + 1])[None])[0] for i in range(2)]
        q = torch.stack([q[0] + messages[0], q[1] - messages[0] + messages[1], q[2] - messages[1]])
    torch.testing.assert_close(net(z)[0], q.flatten() - z[0, :6])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("system", [ROPE, PILE], ids=lambda s: s.kind)
def test_the_program_with_pinned_actions_is_the_rollout_of_the_graph(system, seed):
    pytest.importorskip("highspy", reason="extra dynamics")
    band = np.full(system.size, 0.05)
    task = problem(system, network(system, seed), 2, band)
    planner, x0 = MILPPlanner(task, bounds="interval"), start(system)
    u = np.random.default_rng(seed).uniform(*task.u_box, (2, len(task.u_box[0]))) / 4
    program, layout = planner.program(x0, fixed=u)
    found = solve(program)
    cost, outside, rolled = task.evaluate(x0, torch.from_numpy(u)[None])
    assert float(outside.detach()) == 0
    np.testing.assert_allclose(np.stack([found.x[c] for c in layout.x]), rolled[0].detach(), atol=1e-6)
    assert found.objective == pytest.approx(float(cost.detach()), abs=1e-6)
    free, free_layout = planner.program(x0)
    values = planner.values(x0, u, free, free_layout)
    lower, upper = free.limits()
    rows = free.matrix() @ values
    assert (rows >= lower - 1e-9).all()
    assert (rows <= upper + 1e-9).all()


def test_our_own_search_agrees_on_a_graph():
    pytest.importorskip("highspy", reason="extra dynamics")
    task = problem(ROPE, network(ROPE, 0, passes=1))
    planner, x0 = MILPPlanner(task, gap=1e-9), start(ROPE)
    plan, own = planner.solve(x0), branch_and_bound(planner, x0)
    assert plan.binaries > 0
    assert plan.status == own.status == "optimal"
    assert own.cost == pytest.approx(plan.cost, abs=1e-5)


def test_bounds_are_found_once_for_rounds_that_repeat():
    pytest.importorskip("highspy", reason="extra dynamics")
    chain = network(ROPE, 0, passes=3).dynamics()
    assert len(chain.rounds) == 4
    assert chain.rounds[1] is chain.rounds[3]


def test_a_neuron_has_one_state_for_all_edges_and_both_networks_share_the_ladder():
    torch.manual_seed(0)
    data = PILE.data(300, 0)
    dense = fit(PILE.network((8,), (6,)), data, 60, lr=1e-2)
    assert rmse(dense, data) < float(data[1].square().mean().sqrt())
    few = sparsify(dense, data, 5, schedule=Ladder(2), budget=Budget(10, 5, 20))
    assert few.relus == 5
    assert sum(few.counts().values()) == 14
    assert dense.relus == 14
    assert sum(part.relus for part in few.parts()) == 5
    gates = few.net("tool").gates(4, 1.0, torch.Generator().manual_seed(0))
    assert gates.shape == (4, 8, 3)


def test_a_rope_is_never_stretched_and_granules_never_overlap():
    rng = np.random.default_rng(0)
    for system, worst in ((ROPE, 0.03), (PILE, 0.03)):
        (z, moved), n = system.data(500, 3), system.bodies
        q = (z[:, : 2 * n] + moved).view(-1, n, 2)
        p = z[:, 2 * n : 2 * n + 2] + z[:, -2:]
        assert float((q - p[:, None]).norm(dim=2).min()) > system.radius - 1e-4
        distance = torch.stack([(q[:, i] - q[:, j]).norm(dim=1) for i, j in system.pairs])
        wrong = distance - system.spacing if system.kind == "rope" else system.spacing - distance
        assert float(wrong.quantile(0.99)) < worst
    far = np.concatenate([rng.uniform(-0.1, 0.1, 6), [1.5, 1.5]])
    np.testing.assert_allclose(ROPE.step(far, np.zeros(2))[-2:], far[-2:])


def test_a_pushed_granule_pushes_the_next():
    x = np.array([0.0, 0.0, 0.2, 0.0, 0.9, 0.9])
    after = PILE.step(x, np.array([-0.3, 0.0, 0.2, 0.0]))  # the tool ends at -0.1: the first body must be at 0.05
    np.testing.assert_allclose(after, [0.05, 0.0, 0.25, 0.0, 0.9, 0.9], atol=5e-3)


def test_a_pulled_rope_follows():
    system = Particles("rope", 2, spacing=0.25)
    x = np.array([0.0, 0.0, 0.25, 0.0, 0.3, 0.0])  # the tool overlaps the right end from outside
    after = system.step(x, np.array([0.2, 0.0]))
    np.testing.assert_allclose(after[-2:], [0.5, 0.0])
    assert after[2] <= 0.35 + 1e-6


def test_bad_graphs_are_named():
    with pytest.raises(ConfigError, match="unknown kind of particles 'sand'"):
        Particles("sand", 3)
    with pytest.raises(ConfigError, match="two bodies"):
        Particles("pile", 1)
    with pytest.raises(ConfigError, match="at least one round"):
        Chain(())
    one, two = Pushing(), Pushing(objects=2)
    net = GatedReLUMLP((4, 3, 2))
    with pytest.raises(ShapeError, match="one number of states"):
        Chain((one.dynamics(net), two.dynamics(net)))
    lone = Round("tool", np.zeros((1, 4, 6)), np.zeros((1, 4, 2)), np.zeros((4, 2)), (np.zeros(4), np.ones(4)))
    with pytest.raises(ConfigError, match="tool"):
        GraphNetwork({"pair": net}, [lone], 4, 2, 2)
    with pytest.raises(ConfigError, match="band"):
        Goal(np.zeros(2), np.ones(2), band=np.full(2, -1.0))


def test_removed_everywhere_means_nothing_moves():
    net, (z, _) = network(PILE), PILE.data(5, 0)
    for part in net.parts():
        part.states.fill_(REMOVED)
        part.layers[-1].bias.data.zero_()
        part.out_shift.zero_()
    assert float(net(z.double()).detach().abs().max()) == 0
