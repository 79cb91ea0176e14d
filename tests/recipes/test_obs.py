"""SparseGPT's solver against brute force: every mask, the exact update of each."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError, NumericsError
from gossamer.recipes.obs import inverse_factor, reconstruction_error, sparsegpt
from gossamer.sparsify.patterns import NM, Block, Rows


def inputs(samples=64, columns=8, seed=0):
    """Correlated inputs: neighbours of a first-order autoregression, correlation 0.9."""
    z = torch.randn(samples, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = [z[:, 0]]
    for column in range(1, columns):
        x.append(0.9 * x[-1] + 0.19**0.5 * z[:, column])
    return torch.stack(x, 1)


def matrix(rows=8, columns=8, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_update(weight, gram, mask):
    """The best weights on a fixed mask: least squares for every row."""
    new = torch.zeros_like(weight)
    for row in range(len(weight)):
        kept = mask[row].nonzero().flatten()
        new[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    return new


def test_a_pruned_prefix_gets_the_exact_update():
    """With all pruned columns left of the kept ones, one walk to the right is the exact optimum."""
    x, w = inputs(), matrix()
    w[:, :3] *= 1e-6  # these go
    result = sparsegpt(w, x.T @ x, keep=40, damping=0.0)
    assert torch.equal(result.mask, torch.arange(8).expand(8, 8) >= 3)
    torch.testing.assert_close(result.weight, exact_update(w, x.T @ x, result.mask), rtol=1e-9, atol=1e-12)
    assert result.damping == 0


def test_one_weight_is_the_optimal_brain_surgeon_step():
    """w - w_0 / [H^-1]_00 H^-1_0 (Hassibi & Stork 1993, eq. 5)."""
    x, w = inputs(), matrix(1)
    w[0, 0] = 1e-3
    gram = x.T @ x
    inverse = torch.linalg.inv(gram)
    result = sparsegpt(w, gram, keep=7, damping=0.0)
    torch.testing.assert_close(result.weight[0], w[0] - w[0, 0] / inverse[0, 0] * inverse[0])


@pytest.mark.parametrize("seed", range(5))
def test_brute_force_on_eight_columns_bounds_it(seed):
    """Between the best of all 70 masks with exact updates and magnitude pruning, row by row."""
    x, gaps = inputs(seed=seed), []
    gram = x.T @ x
    for row in range(8):
        w = matrix(1, seed=10 * seed + row)
        masks = [
            torch.zeros(1, 8, dtype=torch.bool).index_fill(1, torch.tensor(c), True) for c in combinations(range(8), 4)
        ]
        best = min(reconstruction_error(w, exact_update(w, gram, mask), gram) for mask in masks)
        result = sparsegpt(w, gram, keep=4, damping=0.0)
        own = reconstruction_error(w, exact_update(w, gram, result.mask), gram)
        magnitude = torch.zeros(1, 8, dtype=torch.bool).index_fill(1, w.abs().topk(4).indices[0], True)
        assert best <= own + 1e-12
        assert own <= result.error + 1e-12
        gaps.append((result.error, reconstruction_error(w, w * magnitude, gram)))
    assert sum(a for a, _ in gaps) < sum(b for _, b in gaps)


def test_uncorrelated_inputs_leave_nothing_to_make_up_for():
    w = matrix()
    result = sparsegpt(w, torch.eye(8, dtype=torch.float64), keep=32, damping=0.0)
    assert torch.equal(result.weight, torch.where(result.mask, w, 0.0))
    assert float(w[result.mask].abs().min()) >= float(w[~result.mask].abs().max())


@given(st.integers(1, 9), st.integers(1, 40), st.floats(0.0, 1.0), st.integers(1, 16), st.integers(0, 5))
def test_counts_are_exact_for_every_shape_and_strip(rows, columns, density, block, seed):
    keep = round(density * rows * columns)
    x = inputs(20, columns, seed)
    result = sparsegpt(matrix(rows, columns, seed), x.T @ x, keep=keep, block=block)
    assert int(result.mask.sum()) == keep
    assert not result.weight[~result.mask].count_nonzero()


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), Block(2, 4)])
def test_structured_patterns_are_legal(pattern):
    x = inputs(100, 32)
    keep = 8 * 16 if isinstance(pattern, Block) else None
    result = sparsegpt(matrix(8, 32), x.T @ x, pattern, keep, block=16)
    pattern.check(result.mask)


def test_strips_of_any_width_apply_the_same_updates():
    """A fixed N:M group makes the mask depend on its own columns only, so lazy updates change nothing."""
    x, w = inputs(100, 32), matrix(8, 32)
    narrow, wide = (sparsegpt(w, x.T @ x, NM(2, 4), block=block) for block in (4, 32))
    assert torch.equal(narrow.mask, wide.mask)
    torch.testing.assert_close(narrow.weight, wide.weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("case", ["one sample", "dead column", "constant feature", "no input at all"])
def test_singular_hessians_are_damped_and_reported(case, damping):
    x = inputs(1 if case == "one sample" else 64)
    if case == "dead column":
        x[:, 3] = 0
    if case == "constant feature":
        x[:, 2] = x[:, 5] = 1.0
    if case == "no input at all":
        x.zero_()
    result = sparsegpt(matrix(), x.T @ x, keep=32, damping=damping)
    assert int(result.mask.sum()) == 32
    assert bool(torch.isfinite(result.weight).all())
    assert result.dead == {"dead column": 1, "no input at all": 8}.get(case, 0)
    singular = case in ("one sample", "constant feature")
    assert result.damping > 0 if singular or damping else result.damping == 0
    if case == "dead column":
        assert not result.mask[:, 3].any()


def test_the_ladder_stops_with_the_name_of_the_layer():
    gram = -torch.eye(4, dtype=torch.float64)
    with pytest.raises(NumericsError, match=r"Hessian of fc1\.weight cannot be factorised"):
        inverse_factor(gram, torch.zeros(4, dtype=torch.bool), 0.0, "fc1.weight")


def test_bad_input():
    x = inputs()
    with pytest.raises(NumericsError, match=r"statistics of fc\.weight have NaN"):
        sparsegpt(matrix(), (x.T @ x).index_fill(0, torch.tensor([1]), float("nan")), keep=3, name="fc.weight")
    with pytest.raises(ConfigError, match="damping"):
        sparsegpt(matrix(), x.T @ x, keep=3, damping=-1.0)
    with pytest.raises(ConfigError, match="block"):
        sparsegpt(matrix(), x.T @ x, keep=3, block=0)
    with pytest.raises(ConfigError, match="Rows"):
        sparsegpt(matrix(), x.T @ x, Rows(), keep=8)
