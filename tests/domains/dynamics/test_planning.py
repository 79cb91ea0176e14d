"""The exact checks of the specification on planners, bounds and networks."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.domains.dynamics import (
    CEM,
    MPC,
    MPPI,
    Dynamics,
    GatedReLUMLP,
    Goal,
    GradientPlanner,
    MILPPlanner,
    Obstacle,
    Problem,
    Pushing,
    Term,
    bounds_of,
    branch_and_bound,
    fold,
    interval,
    residual,
    write,
)
from gossamer.domains.dynamics.branch import Trace
from gossamer.domains.dynamics.program import Program, solve
from gossamer.errors import ConfigError, NumericsError, ShapeError

pytest.importorskip("highspy", reason="extra dynamics")


def network(seed, widths=(3, 4, 3, 2), states=None):
    torch.manual_seed(seed)
    model = GatedReLUMLP(widths).double()
    for buffer in (model.scale, model.out_scale):
        buffer.copy_(torch.rand(buffer.shape) + 0.5)
    model.shift.copy_(torch.rand(model.shift.shape) - 0.5)
    drawn = torch.randint(0, 3, model.states.shape)
    model.states.copy_(drawn if states is None else torch.full_like(drawn, states))
    return model


def small(seed, states=None, horizon=2, widths=(3, 4, 3, 2), **options):
    """A random residual model with two states and one action, in wide boxes."""
    dynamics = residual(network(seed, widths, states), 1, (np.full(3, -4.0), np.full(3, 4.0)))
    goal = Goal(np.array([0.7, -0.4]), np.array([1.0, 0.5]), 2.0)
    return Problem(dynamics, horizon, (np.array([-0.5]), np.array([0.5])), goal, **options)


@pytest.mark.parametrize("states", [None, 0, 1, 2])
def test_folding_is_exact(states):
    for seed in range(5):
        model = network(seed, (3, 5, 4, 6, 2), states)
        x = torch.randn(100, 3, dtype=torch.float64)
        net = fold(model)
        assert net.relus == model.relus
        np.testing.assert_allclose(net(x.numpy()), model(x).detach().numpy(), atol=1e-12)


def test_any_relu_network_folds():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(50, 3)
    np.testing.assert_allclose(fold(plain)(x.double().numpy()), plain(x).detach().numpy(), atol=1e-6)
    assert fold(plain).relus == 9


def test_any_relu_network_is_planned_with_whatever_its_type():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))  # float32, as users have it
    costs = {}
    for model in (plain, copy.deepcopy(plain).double()):
        domain = np.array([-2.0, -0.5]), np.array([2.0, 0.5])
        goal = Goal(np.array([0.5]), np.array([1.0]))
        problem = Problem(residual(model, 1, domain), 2, (domain[0][1:], domain[1][1:]), goal)
        plan = MILPPlanner(problem).solve([0.1], warm=MPPI(problem, seed=0).solve([0.1]).actions)
        assert plan.status == "optimal"
        assert plan.cost == pytest.approx(plan.bound, abs=1e-3)
        costs[next(model.parameters()).dtype] = plan.cost
    assert plain[0].weight.dtype == torch.float32  # the user's own network is left as it is
    assert costs[torch.float32] == pytest.approx(costs[torch.float64], abs=1e-6)


@pytest.mark.parametrize("states", [None, 0, 1, 2])
@pytest.mark.parametrize("solver", ["highs", "scipy"])
def test_the_program_with_pinned_actions_is_the_rollout(states, solver):
    rng = np.random.default_rng(0)
    for seed in range(3):
        problem = small(seed, states, horizon=3)
        planner, x0, u = MILPPlanner(problem), rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.5, 0.5, (3, 1))
        program, layout = planner.program(x0, fixed=u)
        found = solve(program, solver=solver)
        cost, outside, rolled = problem.evaluate(x0, torch.from_numpy(u)[None])
        assert float(outside.detach()) == 0
        np.testing.assert_allclose(np.stack([found.x[c] for c in layout.x]), rolled[0].detach(), atol=1e-6)
        assert found.objective == pytest.approx(float(cost.detach()), abs=1e-6)


def test_a_start_is_feasible_as_given():
    problem = small(3, 0, horizon=3, obstacles=(Obstacle(np.eye(2), np.array([3.0, 3.0]), np.array([3.5, 3.5])),))
    planner, u = MILPPlanner(problem), np.array([[0.1], [-0.3], [0.5]])
    program, layout = planner.program(np.zeros(2))
    x = planner.values(np.zeros(2), u, program, layout)
    lower, upper = program.limits()
    rows = program.matrix() @ x
    assert (rows >= lower - 1e-9).all()
    assert (rows <= upper + 1e-9).all()
    cost, _, _ = problem.evaluate(np.zeros(2), torch.from_numpy(u)[None])
    assert np.dot(program.cost, x) == pytest.approx(float(cost.detach()))


def test_one_relu_one_step_has_its_closed_form():
    # x' = x + max(u, 0): the nearest to 0.3 from 0 is u = 0.3; to -1 it is any u <= 0 at cost 1
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.copy_(torch.tensor([[0.0, 1.0]]))
    model[2].weight.data.fill_(1.0)
    dynamics = residual(model, 1, (np.full(2, -2.0), np.full(2, 2.0)))
    for target, cost, action in ((0.3, 0.0, 0.3), (-1.0, 1.0, None), (3.0, 2.0, 1.0)):
        problem = Problem(dynamics, 1, (np.array([-1.0]), np.array([1.0])), Goal(np.array([target]), np.ones(1)))
        plan = MILPPlanner(problem).solve([0.0])
        assert plan.cost == pytest.approx(cost, abs=1e-6)
        assert plan.actions[0, 0] == pytest.approx(action, abs=1e-6) if action else plan.actions[0, 0] <= 1e-9


def enumerate_patterns(planner, x0):
    """The least cost over all activation patterns, a linear program each."""
    program, _ = planner.program(x0)
    binary = np.flatnonzero(program.integer)
    assert len(binary) <= 10
    best = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=len(binary)):
        for column, value in zip(binary, pattern, strict=True):
            program.lower[column] = program.upper[column] = value
        program.integer = [False] * len(program.integer)
        found = solve(program)
        best = min(best, found.objective)
    return best, len(binary)


def test_it_is_the_best_of_all_patterns_and_our_own_search_agrees():
    searched = 0
    for seed in range(4):
        planner = MILPPlanner(small(seed, 0, widths=(3, 2, 2, 2)), gap=1e-9)
        x0 = np.array([0.2, -0.1])
        best, binaries = enumerate_patterns(planner, x0)
        searched += binaries
        plan, trace = planner.solve(x0), Trace()
        own = branch_and_bound(planner, x0, trace=trace)
        assert plan.status == own.status == "optimal"
        assert plan.cost == pytest.approx(best, abs=1e-5)
        assert own.cost == pytest.approx(best, abs=1e-5)
        assert all(low <= best + 1e-6 <= high + 2e-6 for low, high in zip(trace.bounds, trace.incumbents, strict=True))
        scipy = MILPPlanner(planner.problem, solver="scipy", gap=1e-9).solve(x0)
        assert scipy.cost == pytest.approx(best, abs=1e-5)
        free = MILPPlanner(planner.problem, bounds="interval", gap=1e-9).solve(x0)
        assert free.cost == pytest.approx(best, abs=1e-5)
    assert searched > 0


def test_identity_only_is_a_linear_program():
    planner = MILPPlanner(small(0, 1))
    program, _ = planner.program(np.zeros(2))
    assert program.binaries == 0
    assert MILPPlanner(small(0, 0)).program(np.zeros(2))[0].binaries > 0


@pytest.mark.parametrize("method", ["interval", "lp", "exact"])
def test_bounds_hold_for_samples_and_tighten(method):
    net, low, high = fold(network(2, (3, 5, 5, 2), 0)), np.full(3, -1.0), np.full(3, 1.0)
    limits = bounds_of(net, (low, high), method)
    a, _ = net.activations(np.random.default_rng(0).uniform(low, high, (10_000, 3)))
    assert (a >= limits[0] - 1e-9).all()
    assert (a <= limits[1] + 1e-9).all()
    wide = interval(net, low, high)
    assert (limits[0] >= wide[0] - 1e-12).all()
    assert (limits[1] <= wide[1] + 1e-12).all()
    if method == "exact":
        lp = bounds_of(net, (low, high), "lp")
        assert (limits[1] - limits[0]).sum() < (lp[1] - lp[0]).sum() < (wide[1] - wide[0]).sum()


def test_more_room_and_more_search_never_cost_more():
    before = np.inf
    for room in (0.1, 0.3, 0.6):
        problem = small(5, 0)
        problem = Problem(problem.dynamics, 2, (np.array([-room]), np.array([room])), problem.goal)
        plan = MILPPlanner(problem, gap=1e-6).solve([0.1, 0.1])
        assert plan.cost <= before + 1e-6
        before = plan.cost
        for sampler in (MPPI(problem, 50, 2), CEM(problem, 50, 2), GradientPlanner(problem, 4, 20)):
            assert plan.bound <= sampler.solve([0.1, 0.1]).cost + 1e-6


def test_terms_share_one_network():
    # two discs, one network: the two-disc model is two one-disc models
    one, two = Pushing(), Pushing(objects=2)
    model = network(1, (4, 5, 2), 0)
    a, b = one.dynamics(model), two.dynamics(model)
    x, u = torch.randn(7, 6).double(), torch.randn(7, 2).double()
    got = b.step(x, u)[0]
    for disc in (slice(0, 2), slice(2, 4)):
        expected = a.step(torch.cat([x[:, disc], x[:, 4:]], 1), u)[0]
        torch.testing.assert_close(got[:, disc], expected[:, :2])


def test_pushing_moves_a_disc_to_contact():
    system = Pushing()
    x = system.step(np.array([0.3, 0.0, 0.0, 0.0]), np.array([0.1, 0.0]))
    np.testing.assert_allclose(x, [0.4, 0.0, 0.1, 0.0])
    np.testing.assert_allclose(system.step(x, np.array([-0.9, 0.0])), [0.4, 0.0, -0.15, 0.0])


def test_obstacles_and_infeasible_problems_are_named():
    problem = small(0, 1, x_box=(np.full(2, -1.0), np.full(2, 1.0)))
    inside = Obstacle(np.eye(2), np.full(2, -9.0), np.full(2, 9.0))
    with pytest.warns(UserWarning, match="obstacle"):
        plan = MILPPlanner(Problem(problem.dynamics, 2, problem.u_box, problem.goal, None, (inside,))).solve([0, 0])
    assert plan.status == "infeasible"
    assert plan.blame == ("obstacle",)
    assert (plan.actions == 0).all()
    far = Problem(problem.dynamics, 1, problem.u_box, problem.goal)
    with pytest.warns(UserWarning, match="model domain"):
        assert MILPPlanner(far).solve([50.0, 0.0]).blame == ("model domain",)
    narrow = Problem(problem.dynamics, 1, problem.u_box, problem.goal, (np.zeros(2), np.full(2, 1e-9)))
    with pytest.warns(UserWarning, match="state box"):
        assert MILPPlanner(narrow, safe=np.array([0.2])).solve([0.0, 0.0]).actions[0, 0] == 0.2


def test_no_time_means_the_warm_start():
    warm = np.full((2, 1), 0.25)
    with pytest.warns(UserWarning, match="warm start is used"):
        plan = MILPPlanner(small(0, 0), time_limit=1e-9, solver="scipy").solve([0.0, 0.0], warm)
    assert plan.status == "warm start"
    np.testing.assert_array_equal(plan.actions, warm)


def test_the_horizon_recedes():
    system = Pushing()
    model = network(4, (4, 3, 2), 2)  # nothing moves but the pusher
    problem = Problem(system.dynamics(model), 2, system.u_box, Goal(np.array([0, 0, 0.4, 0]), np.array([0, 0, 1, 1.0])))
    episode = MPC(MILPPlanner(problem), hold=2).run(system.step, [0.3, 0.3, 0.0, 0.0], 3)
    assert len(episode.plans) == 2
    np.testing.assert_allclose(episode.states[-1, 2:], [0.4, 0.0], atol=1e-6)


def test_programs_are_written(tmp_path):
    program, _ = MILPPlanner(small(0, 0)).program(np.zeros(2))
    for ending in (".lp", ".mps"):
        assert write(program, tmp_path / f"plan{ending}").stat().st_size > 0
    with pytest.raises(ConfigError, match=r"\.lp or \.mps"):
        write(program, tmp_path / "plan.txt")


def test_bad_input_is_named():
    problem = small(0)
    with pytest.raises(ConfigError, match="Tanh"):
        fold(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)))
    with pytest.raises(ConfigError, match="action box is unbounded"):
        Problem(problem.dynamics, 1, (np.array([-np.inf]), np.array([1.0])), problem.goal)
    with pytest.raises(ConfigError, match="horizon=0"):
        Problem(problem.dynamics, 0, problem.u_box, problem.goal)
    with pytest.raises(ConfigError, match="domain of the model is unbounded"):
        bounds_of(problem.dynamics.net, (np.full(3, -np.inf), np.ones(3)))
    with pytest.raises(ConfigError, match="quadratic"):
        Goal(np.zeros(2), np.ones(2), norm="l2")
    with pytest.raises(NumericsError, match="NaN"):
        problem.start([np.nan, 0])
    with pytest.raises(ConfigError, match="outside the state box"):
        small(0, x_box=(np.zeros(2), np.ones(2))).start([2.0, 0.5])
    with pytest.raises(ShapeError, match="read and write"):
        Dynamics(problem.dynamics.model, np.eye(2), np.zeros((2, 1)), (Term(np.eye(2), np.eye(2)),), (np.zeros(3),) * 2)
    with pytest.raises(ConfigError, match="unknown solver"):
        solve(Program(), solver="gurobi")
    with pytest.raises(ConfigError, match="unknown bounds 'tight'"):
        MILPPlanner(problem, bounds="tight")
    with pytest.raises(ShapeError, match="safe action"):
        MILPPlanner(problem, safe=np.zeros(2))
    with pytest.raises(NumericsError, match="warm start"):
        MILPPlanner(problem).solve([0.0, 0.0], np.full((2, 1), np.nan))
    with pytest.raises(ShapeError, match="warm start"):
        MILPPlanner(problem).solve([0.0, 0.0], np.zeros((1, 1)))
