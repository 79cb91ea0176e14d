"""Proximal operators against brute force and optimality conditions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from gossamer.errors import ConfigError, NumericsError
from gossamer.maths.proximal import (
    fista,
    project_l0,
    project_simplex,
    project_sparse_simplex,
    soft_threshold,
)

vectors = st.lists(st.floats(-5, 5), min_size=1, max_size=8).map(lambda v: torch.tensor(v, dtype=torch.float64))


@given(vectors, st.floats(0, 3))
def test_soft_threshold_minimises_its_objective(x, t):
    p = soft_threshold(x, t)
    assert torch.equal(p, x.sign() * (x.abs() - t).clamp(min=0))
    best = 0.5 * (p - x) ** 2 + t * p.abs()
    for shift in (-0.1, 0.1):
        assert (0.5 * (p + shift - x) ** 2 + t * (p + shift).abs() >= best - 1e-12).all()


def test_soft_threshold_takes_a_threshold_per_entry():
    got = soft_threshold(torch.tensor([[2.0, 2.0], [-2.0, 0.5]]), torch.tensor([0.5, 1.0]))
    assert torch.equal(got, torch.tensor([[1.5, 1.0], [-1.5, 0.0]]))


@given(vectors, st.data())
def test_l0_keeps_exactly_the_largest(x, data):
    k = data.draw(st.integers(1, x.numel()))
    got = project_l0(x, k)
    kept = got != 0
    assert torch.equal(got[kept], x[kept])
    assert int(kept.sum()) == min(k, int((x != 0).sum()))
    assert float(x[~kept].abs().max() if (~kept).any() else 0) <= float(x[kept].abs().min() if kept.any() else 9)


def test_l0_ties_go_to_the_lower_index_and_dim_counts_per_row():
    assert torch.equal(project_l0(torch.tensor([1.0, -1.0, 1.0]), 2), torch.tensor([1.0, -1.0, 0.0]))
    x = torch.tensor([[1.0, 2.0, 3.0], [9.0, 8.0, 7.0]])
    assert torch.equal(project_l0(x, 1, dim=1), torch.tensor([[0.0, 0.0, 3.0], [9.0, 0.0, 0.0]]))
    assert torch.equal(project_l0(x, 1, dim=0), torch.tensor([[0.0, 0.0, 0.0], [9.0, 8.0, 7.0]]))


@given(vectors, st.floats(0.1, 4))
def test_simplex_satisfies_the_optimality_conditions(x, total):
    p = project_simplex(x, total)
    assert (p >= 0).all()
    assert float(p.sum()) == pytest.approx(total)
    shift = (x - p)[p > 0]
    assert float(shift.max() - shift.min()) < 1e-9  # one multiplier for all positive entries
    assert (x[p == 0] <= shift.max() + 1e-9).all()
    assert torch.allclose(project_simplex(p, total), p)


@given(vectors, st.data())
@settings(max_examples=60)
def test_sparse_simplex_is_the_best_over_all_supports(x, data):
    k = data.draw(st.integers(1, x.numel()))
    got = project_sparse_simplex(x, k)
    assert int((got > 0).sum()) <= k
    assert float(got.sum()) == pytest.approx(1.0)

    def distance(support):
        p = torch.zeros_like(x)
        p[list(support)] = project_simplex(x[list(support)])
        return float((p - x).square().sum())

    best = min(distance(s) for s in combinations(range(x.numel()), k))
    assert float((got - x).square().sum()) == pytest.approx(best, abs=1e-9)


def test_sparse_simplex_works_along_any_dimension_and_passes_gradients():
    x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = project_sparse_simplex(x, 2, dim=1)
    assert torch.allclose(got.sum(1), torch.ones(4, 3, dtype=torch.float64))
    assert torch.equal(got, project_sparse_simplex(x.movedim(1, -1), 2).movedim(-1, 1))
    assert torch.autograd.gradcheck(lambda v: project_sparse_simplex(v, 2, dim=1), x.requires_grad_())


def test_fista_solves_the_lasso_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    a, alpha = rng.normal(size=(40, 12)), 0.1
    y = a[:, :3] @ np.array([2.0, -1.0, 0.5]) + 0.05 * rng.normal(size=40)
    want = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(a, y).coef_
    A, Y = torch.from_numpy(a), torch.from_numpy(y)
    top = float(torch.linalg.matrix_norm(A, 2) ** 2) / 40
    got = fista(
        lambda w: A.T @ (A @ w - Y) / 40,
        lambda v, t: soft_threshold(v, t * alpha),
        torch.zeros(12, dtype=torch.float64),
        top,
        tolerance=1e-12,
    )
    assert got.converged
    assert np.allclose(got.x.numpy(), want, atol=1e-8)
    assert np.array_equal(got.x.numpy() == 0, want == 0)


def test_fista_says_when_it_did_not_converge_or_diverged():
    slow = fista(lambda x: 1e-3 * (x - 1), lambda v, t: v, torch.zeros(1), 1.0, steps=3)
    assert not slow.converged
    assert slow.steps == 3
    with pytest.raises(NumericsError, match=r"lipschitz=0\.001 too small"):
        fista(lambda x: x - 1, lambda v, t: v, torch.zeros(1), 0.001)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_threshold(torch.ones(2), -1.0), "threshold must not be negative, got -1"),
        (lambda: project_l0(torch.ones(3), 4), r"k must lie in 1\.\.3, got 4"),
        (lambda: project_sparse_simplex(torch.ones(3), 0), "k must lie in"),
        (lambda: project_simplex(torch.ones(3), 0.0), "total must be positive"),
        (lambda: fista(lambda x: x, lambda v, t: v, torch.ones(1), 0.0), "lipschitz must be positive"),
        (lambda: fista(lambda x: x, lambda v, t: v, torch.ones(1), 1.0, steps=0), "steps must be at least 1"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_nan_is_refused():
    with pytest.raises(NumericsError, match="NaN or infinity"):
        project_l0(torch.tensor([float("nan")]), 1)
