"""Lines of a transport plan: against enumeration of supports, the reference, every level and thread count."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.sparse_lines import sparse_lines, sparse_lines_reference
from gossamer.maths.proximal import project_simplex, project_sparse_simplex


def problem(seed: int, shape: tuple[int, int, int], dtype: torch.dtype, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    cost, alpha = torch.rand(shape, generator=source), torch.rand(shape[0], shape[2], generator=source)
    if ties:
        cost, alpha = (cost * 3).round(), (alpha * 2).round()
    total = torch.rand(shape[:2], generator=source) * (torch.rand(shape[:2], generator=source) < 0.8)
    return cost.to(dtype), alpha.to(dtype), total.to(dtype)


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 3), st.sampled_from((1, 2, 63, 65, 130)), st.sampled_from((1, 2, 15, 31, 32, 33, 100))),
    st.sampled_from((torch.float32, torch.float64)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1e-3, 0.3, 20.0)),
)
def test_it_is_the_reference_at_every_level(seed, shape, dtype, ties, semi, gamma):
    cost, alpha, by = problem(seed, shape, dtype, ties)
    k = 1 + seed % shape[2]
    want = sparse_lines_reference(cost, alpha, by if semi else by - 0.3, k, gamma, semi, True)
    for level in native.levels():
        with native.using(level):
            got = sparse_lines(cost, alpha, by if semi else by - 0.3, k, gamma, semi, True)
        tolerance = (
            {"rtol": 1e-4, "atol": 1e-4 / gamma} if dtype is torch.float32 else {"rtol": 1e-9, "atol": 1e-11 / gamma}
        )
        assert ((got.plan > 0).sum(-1) <= k).all()
        for name, a, b in zip(("filled", "level", "star"), got[1:4], want[1:4], strict=True):
            torch.testing.assert_close(a, b, **tolerance, msg=lambda m, name=name, level=level: f"{name} {level}: {m}")
        torch.testing.assert_close(got.sums, got.plan.sum(1), **tolerance)
        if not ties:
            torch.testing.assert_close(got.plan, want[4], **tolerance)


@pytest.mark.parametrize("semi", [True, False])
def test_bits_do_not_depend_on_threads_or_level(semi):
    cost, alpha, by = problem(3, (2, 300, 257), torch.float64, False)
    found = []
    for level in native.levels()[1:]:
        for threads in (1, 2, 3):
            with native.using(level):
                native.set_threads(threads)
                try:
                    found.append(sparse_lines(cost, alpha, by, 3, 0.2, semi, True))
                finally:
                    native.set_threads(None)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def best_by_enumeration(s: Tensor, total: float, k: int, gamma: float) -> float:
    """Largest <s, t> - gamma/2 ||t||^2 over all supports of at most k entries, t on the simplex of this total."""
    best = -float("inf")
    for size in range(1, k + 1):
        for support in combinations(range(len(s)), size):
            part = s[list(support)]
            t = project_simplex(part / gamma, total)
            best = max(best, float(part @ t - gamma / 2 * t.square().sum()))
    return best


@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from((0.1, 1.0, 5.0)))
def test_conjugate_and_projection_are_exact(seed, m, gamma):
    cost, alpha, _ = problem(seed, (1, 1, m), torch.float64, seed % 3 == 0)
    k, total = 1 + seed % m, 0.7
    got = sparse_lines(cost, alpha, torch.full((1, 1), total, dtype=torch.float64), k, gamma, plan=True)
    s = (alpha[:, None] - cost)[0, 0]
    assert float(got.star) == pytest.approx(best_by_enumeration(s, total, k, gamma), abs=1e-12)
    torch.testing.assert_close(got.plan[0, 0], project_sparse_simplex(s / gamma, k, total), rtol=1e-12, atol=1e-13)


def test_forbidden_entries_get_nothing_and_a_line_of_no_mass_stays_empty(level):
    cost = torch.tensor([[[0.0, torch.inf, 1.0], [0.0, torch.inf, 1.0]]])
    for k in (1, 2, 3):
        got = sparse_lines(cost, torch.zeros(1, 3), torch.tensor([[1.0, 0.0]]), k, 0.5, plan=True)
        assert (got.plan[0, :, 1] == 0).all()
        assert (got.plan[0, 1] == 0).all()
        assert got.filled.tolist() == [[1.0, 0.0]]
        assert torch.isfinite(got.star).all()


def test_it_is_a_registered_operator():
    cost, alpha, by = problem(0, (2, 4, 5), torch.float64, False)
    arguments = (cost, alpha, by, 2, 0.5, True, True)
    torch.library.opcheck(torch.ops.gossamer.sparse_lines.default, arguments)


def test_bad_input_is_named():
    cost, alpha, by = problem(0, (1, 2, 3), torch.float32, False)
    with pytest.raises(ConfigError, match="float32"):
        sparse_lines(cost.double(), alpha, by, 1, 1.0)
    with pytest.raises(ShapeError, match=r"alpha \(B, m\)"):
        sparse_lines(cost, alpha[:, :2], by, 1, 1.0)
    for k, gamma in ((0, 1.0), (4, 1.0), (1, 0.0)):
        with pytest.raises(ConfigError, match="1 <= k <= 3"):
            sparse_lines(cost, alpha, by, k, gamma)
