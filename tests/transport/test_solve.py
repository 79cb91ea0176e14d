"""Plans: limits, optimality against LP, brute force and POT, invariances, batches, padding, bad input."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.maths.proximal import project_simplex
from gossamer.transport import LBFGS, Adam, Entropic, GradientAscent, KSparse, Quadratic, Unregularised, solve_ot


def points(seed: int, m: int = 12, n: int = 9, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances of points in the plane, scaled to at most 1, and random marginals of equal mass."""
    source = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(*batch, count, 2, generator=source, dtype=torch.float64) for count in (m, n))
    cost = torch.cdist(x, y).square()
    a, b = (torch.rand(*batch, count, generator=source, dtype=torch.float64) + 0.1 for count in (m, n))
    return cost / cost.max(), a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def cheapest(cost: Tensor, a: Tensor, b: Tensor) -> float:
    """Unregularised optimum by linear programming."""
    m, n = cost.shape
    rows = torch.kron(torch.eye(m), torch.ones(1, n))
    columns = torch.kron(torch.ones(1, m), torch.eye(n))
    both = torch.cat([rows, columns]).double().numpy()
    return float(linprog(cost.flatten().numpy(), A_eq=both, b_eq=torch.cat([a, b]).numpy()).fun)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_one_non_zero_is_unregularised_transport(seed, gamma):
    cost = points(seed, 20, 20)[0]
    uniform = torch.full((20,), 0.05, dtype=torch.float64)
    found = solve_ot(cost, reg=KSparse(1, gamma))
    assert float(found.value) == pytest.approx(cheapest(cost, uniform, uniform) + gamma / 2 / 20, abs=1e-6)
    assert (found.nonzeros == 1).all()


@given(st.integers(0, 1000), st.integers(1, 8))
def test_the_value_is_below_every_feasible_plan(seed, k):
    cost, a, b = points(seed, 8, 12)
    # unregularised transport plus the largest penalty that any plan with these columns can have
    assert (
        float(solve_ot(cost, a, b, KSparse(k, 0.5)).value)
        <= cheapest(cost, a, b) + 0.25 * float(b.square().sum()) + 1e-9
    )


def test_assignments_are_found_as_by_brute_force():
    for seed in range(5):
        cost = points(seed, 5, 5)[0]
        best = min(sum(float(cost[i, j]) for j, i in enumerate(order)) for order in permutations(range(5))) / 5
        found = solve_ot(cost, reg=KSparse(1, 0.1))
        assert float(found.value) == pytest.approx(best + 0.1 / 2 / 5, abs=1e-6)


@given(st.integers(0, 1000), st.sampled_from((0.05, 1.0)))
def test_no_limit_is_quadratic_transport(seed, gamma):
    cost, a, b = points(seed)
    sparse, quadratic = solve_ot(cost, a, b, KSparse(12, gamma)), solve_ot(cost, a, b, Quadratic(gamma))
    assert torch.equal(sparse.plan, quadratic.plan)
    assert bool(quadratic.converged)
    # a feasible plan whose value equals the dual's is optimal, whoever computed it
    assert float(quadratic.objective) == pytest.approx(float(quadratic.value), abs=1e-5)
    assert float(quadratic.row_error) < 1e-5
    # optimality by another road: the plan is its own projection along the reduced costs
    reduced = (quadratic.alpha[:, None] + quadratic.beta - cost) / gamma
    torch.testing.assert_close(quadratic.plan, reduced.clamp(min=0), rtol=1e-9, atol=1e-12)


def test_the_value_falls_with_k_and_bounds_every_plan():
    for seed in range(3):
        cost, a, b = points(seed, 20, 20)
        ladder = [solve_ot(cost, a, b, KSparse(k, 1.0)) for k in (1, 2, 3, 5, 20)]
        values = [float(r.value) for r in ladder]
        assert values == sorted(values, reverse=True)
        for k, r in zip((1, 2, 3, 5, 20), ladder, strict=True):
            assert int(r.nonzeros.max()) <= k
            assert float(r.column_error) < 1e-12


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_is_no_worse_than_pot(k):
    ot = pytest.importorskip("ot", reason="compares with POT (extra transport)")
    for seed in range(3):
        cost, a, b = points(seed, 15, 15)
        _, log = ot.smooth.smooth_ot_semi_dual(
            a.numpy(), b.numpy(), cost.numpy(), 0.5, "sparsity_constrained", max_nz=k, log=True
        )
        assert float(solve_ot(cost, a, b, KSparse(k, 0.5)).value) >= -log["res"].fun - 1e-6


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_quadratic_and_entropic_plans_are_those_of_pot():
    ot = pytest.importorskip("ot", reason="compares with POT (extra transport)")
    cost, a, b = points(4, 15, 10)
    arrays = a.numpy(), b.numpy(), cost.numpy()
    quadratic = torch.from_numpy(ot.smooth.smooth_ot_semi_dual(*arrays, 0.5, "l2", stopThr=1e-14))
    torch.testing.assert_close(solve_ot(cost, a, b, Quadratic(0.5)).plan, quadratic, rtol=0, atol=1e-5)
    entropic = solve_ot(cost, a, b, Entropic(0.05))
    expected = torch.from_numpy(ot.sinkhorn(*arrays, 0.05, stopThr=1e-12, numItermax=10_000))
    torch.testing.assert_close(entropic.plan, expected, rtol=0, atol=1e-6)
    assert float(entropic.objective) == pytest.approx(float(entropic.value), abs=1e-5)


def test_the_unregularised_plan_is_the_cheapest():
    pytest.importorskip("ot", reason="needs POT (extra transport)")
    cost, a, b = points(2, batch=(2,))
    found = solve_ot(cost, a, b, Unregularised())
    for i in range(2):
        assert float(found.cost[i]) == pytest.approx(cheapest(cost[i], a[i], b[i]), abs=1e-9)
    assert float(found.row_error.max()) < 1e-12
    dual = (found.alpha * a).sum(-1) + (found.beta * b).sum(-1)
    torch.testing.assert_close(dual, found.value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("k", [3, 12])
def test_dual_and_semi_dual_meet(k):
    cost, a, b = points(1)
    semi, full = (solve_ot(cost, a, b, KSparse(k, 1.0), form=form) for form in ("semi_dual", "dual"))
    assert float(full.value) == pytest.approx(float(semi.value), rel=1e-6 if k == 12 else 1e-3)


@given(st.integers(0, 1000), st.integers(1, 12))
def test_column_sums_are_exact_at_any_potential(seed, k):
    cost, a, b = points(seed, 9, 12)
    found = solve_ot(cost, a, b, KSparse(min(k, 9), 0.3), solver=Adam(steps=1 + seed % 5, lr=0.3))
    torch.testing.assert_close(found.plan.sum(0), b, rtol=0, atol=1e-12)


def test_rows_are_the_columns_of_the_transpose():
    cost, a, b = points(5)
    rows = solve_ot(cost, a, b, KSparse(2, 0.5), axis="rows")
    columns = solve_ot(cost.t(), b, a, KSparse(2, 0.5))
    assert float(rows.value) == pytest.approx(float(columns.value), abs=1e-4)
    smooth = (solve_ot(cost, a, b, Quadratic(0.5), axis="rows"), solve_ot(cost.t(), b, a, Quadratic(0.5)))
    torch.testing.assert_close(smooth[0].plan, smooth[1].plan.t(), rtol=0, atol=1e-6)
    assert rows.nonzeros.shape == (12,)
    assert int(rows.nonzeros.max()) <= 2
    assert float(rows.row_error) < 1e-12


def test_scaling_and_shifting_change_what_they_should():
    cost, a, b = points(6)
    plain = solve_ot(cost, a, b, KSparse(6, 1.0))
    scaled = solve_ot(cost, 8 * a, 8 * b, KSparse(6, 1.0 / 8))
    torch.testing.assert_close(scaled.plan / 8, plain.plan, rtol=0, atol=1e-5)
    shift = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None] + torch.linspace(0, 2, 9, dtype=torch.float64)
    moved = solve_ot(cost + shift, a, b, KSparse(6, 1.0))
    torch.testing.assert_close(moved.plan, plain.plan, rtol=0, atol=1e-4)
    known = float(a @ torch.linspace(-1, 1, 12).double() + b @ torch.linspace(0, 2, 9).double())
    assert float(moved.value - plain.value) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("k", [2, 5, 12])
def test_a_batch_is_as_good_as_one_by_one(k):
    cost, a, b = points(7, batch=(2, 3))
    together = solve_ot(cost, a, b, KSparse(k, 1.0))
    assert together.plan.shape == (2, 3, 12, 9)
    for i in range(2):
        for j in range(3):
            alone = solve_ot(cost[i, j], a[i, j], b[i, j], KSparse(k, 1.0))
            # two searches end at a kink at slightly different heights, and meet where there is none
            far = 2e-3 if k == 2 else 1e-6
            assert float(together.value[i, j]) == pytest.approx(float(alone.value), abs=far)


@pytest.mark.parametrize("reg", [KSparse(3, 0.5), Quadratic(0.5), Entropic(0.1)])
@pytest.mark.parametrize("form", ["semi_dual", "dual"])
def test_padding_changes_nothing(reg, form):
    cost, a, b = points(8)
    padded = torch.cat([cost, torch.full((4, 9), math.nan, dtype=torch.float64)])
    kept = torch.arange(16) < 12
    more = torch.cat([a, torch.ones(4, dtype=torch.float64)])
    found = solve_ot(padded, more, b, reg, mask=kept, form=form)
    assert (found.plan[12:] == 0).all()
    torch.testing.assert_close(found.plan[:12], solve_ot(cost, a, b, reg, form=form).plan, rtol=0, atol=1e-8)


def test_columns_and_rows_without_mass_stay_empty():
    cost, a, b = points(9)
    a[3], b[2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    for reg in (KSparse(3, 0.5), Quadratic(0.5), Entropic(0.1)):
        found = solve_ot(cost, a, b, reg)
        assert (found.plan[:, 2] == 0).all()
        assert torch.isfinite(found.plan).all()
        assert math.isfinite(found.value)
    # nothing forces the row to be empty but its own mass
    assert float(solve_ot(cost, a, b, Quadratic(0.5)).plan[3].sum()) < 1e-5


def test_a_start_near_the_optimum_saves_steps():
    cost, a, b = points(10, 60, 60)
    first = solve_ot(cost, a, b, Quadratic(0.5))
    again = solve_ot(cost * 1.001, a, b, Quadratic(0.5), start=first)
    assert int(again.iterations) < int(first.iterations) / 2
    assert bool(again.converged)


@pytest.mark.parametrize(
    "solver",
    [
        LBFGS(),
        LBFGS(anneal=8.0),
        Adam(400, 0.02, cosine=True),
        Adam(400, 0.02, cosine=True, anneal=8.0),
        GradientAscent(3000, 0.1),
    ],
)
def test_every_solver_reaches_the_optimum(solver):
    cost, a, b = points(11)
    best = solve_ot(cost, a, b, KSparse(5, 1.0), solver=LBFGS(tolerance=1e-9))
    found = solve_ot(cost, a, b, KSparse(5, 1.0), solver=solver)
    assert float(found.value) == pytest.approx(float(best.value), abs=1e-4)
    assert float(found.row_error) < 0.05


def test_the_fixed_steps_are_those_of_torchs_adam():
    cost, a, b = points(12)
    alpha = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        plan = torch.stack([project_simplex((alpha - c) / 0.5, float(t)) for c, t in zip(cost.t(), b, strict=True)], 1)
        alpha.grad = plan.sum(1).detach() - a
        optimizer.step()
    found = solve_ot(cost, a, b, Quadratic(0.5), solver=Adam(20, 0.01))
    torch.testing.assert_close(found.alpha, alpha.detach(), rtol=1e-9, atol=1e-12)


def test_the_result_says_how_far_to_trust_it():
    cost, a, b = points(13)
    assert "converged:" in solve_ot(cost, a, b, Quadratic(1.0)).status
    poor = solve_ot(cost, a, b, KSparse(2, 1.0))
    assert not bool(poor.converged)
    assert "not converged" in poor.status
    assert "Unregularised()" in poor.status
    assert torch.equal(poor.sparse().to_dense(), poor.plan)
    assert float(poor.row_error) == pytest.approx(float((poor.plan.sum(1) - a).abs().sum()), abs=1e-12)


def test_half_precision_is_raised():
    cost = points(14)[0]
    with pytest.warns(UserWarning, match="float64"):
        assert solve_ot(cost.half()).plan.dtype is torch.float64
    assert solve_ot(cost.bfloat16(), solver=Adam()).plan.dtype is torch.float32


def with_entry(t: Tensor, value: float) -> Tensor:
    changed = t.clone()
    changed.view(-1)[1] = value
    return changed


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c, a, b: {"cost": with_entry(c, math.nan)},
            NumericsError,
            r"cost must be finite, but is nan at index \(0, 1\)",
        ),
        (lambda c, a, b: {"cost": with_entry(c, math.inf)}, NumericsError, "cost must be finite"),
        (lambda c, a, b: {"cost": c.long()}, ConfigError, "floating-point"),
        (lambda c, a, b: {"cost": c[0]}, ShapeError, "rows, columns"),
        (lambda c, a, b: {"cost": c[:0]}, ShapeError, "empty"),
        (
            lambda c, a, b: {"a": with_entry(a, -0.1)},
            NumericsError,
            r"marginal a must not be negative, but is -0.1 at index \(1,\)",
        ),
        (lambda c, a, b: {"b": with_entry(b, math.inf)}, NumericsError, "marginal b must be finite"),
        (lambda c, a, b: {"b": b * 0.9}, NumericsError, "total masses differ: 1 in a, 0.9 in b"),
        (lambda c, a, b: {"a": a * 0, "b": b * 0}, NumericsError, "no mass"),
        (lambda c, a, b: {"a": b}, ShapeError, "marginal a must have shape"),
        (lambda c, a, b: {"axis": "diagonal"}, ConfigError, "axis"),
        (lambda c, a, b: {"form": "semidual"}, ConfigError, "did you mean 'semi_dual'"),
        (lambda c, a, b: {"reg": KSparse(13)}, ConfigError, "k = 13 non-zeros, but a line has only 12"),
        (lambda c, a, b: {"mask": torch.zeros(12, dtype=torch.bool)}, ShapeError, "without rows"),
        (lambda c, a, b: {"mask": torch.ones(9, dtype=torch.bool)}, ShapeError, "mask must be bool"),
    ],
)
def test_bad_input_is_named(change, error, message):
    cost, a, b = points(0)
    arguments = {"cost": cost, "a": a, "b": b, "reg": KSparse(3)} | change(cost, a, b)
    with pytest.raises(error, match=message):
        solve_ot(**arguments)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "2"])
def test_a_bad_k_is_named(k):
    with pytest.raises(ConfigError, match="integer of at least 1"):
        KSparse(k)


@pytest.mark.parametrize(
    "make", [lambda v: KSparse(1, v), Quadratic, Entropic, lambda v: LBFGS(tolerance=v), lambda v: Adam(lr=v)]
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_weight_is_named(make, value):
    with pytest.raises(ConfigError, match="positive"):
        make(value)


def test_too_few_non_zeros_for_all_rows_is_said():
    cost, a, b = points(0, 12, 3)
    with pytest.warns(UserWarning, match="take k of at least 4"):
        solve_ot(cost, a, b, KSparse(3, 1.0))
