"""Sparse layers in training: patterns, moves, the layer and its gradients, against plain torch at every level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gossamer.errors import ConfigError, MaskError, ShapeError
from gossamer.kernels import native, sparse_train
from gossamer.kernels.sparse_train import sparse_linear
from gossamer.kernels.train_pattern import (
    Geometry,
    gather,
    geometry_of,
    pack_pattern,
    pack_reference,
    positions,
    scatter_,
    transfer,
)

SHAPES = st.tuples(st.integers(1, 200), st.integers(1, 200))
DENSITIES = st.sampled_from([0.0, 0.03, 0.3, 1.0])
GEOMETRY = Geometry(64, 64, 128, 64)


def random_mask(shape: tuple[int, int], density: float, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


# ---------------------------------------------------------------- patterns


@given(SHAPES, DENSITIES, st.integers(0, 50), st.sampled_from([GEOMETRY, Geometry(128, 128, 64, 192), None]))
def test_the_words_are_the_references_at_every_level(shape, density, seed, geometry):
    mask = random_mask(shape, density, seed)
    for name in native.levels():
        with native.using(name):
            pattern = pack_pattern(mask, geometry)
        assert torch.equal(pattern.words, pack_reference(mask, pattern.geometry)), name


@given(SHAPES, DENSITIES, st.integers(0, 50))
def test_every_nonzero_has_one_place(shape, density, seed):
    mask = random_mask(shape, density, seed)
    pattern = pack_pattern(mask)
    back = torch.zeros(shape, dtype=torch.bool)
    back[positions(pattern)] = True
    assert torch.equal(back, mask)
    assert pattern.nonzeros == int(mask.sum())


@given(SHAPES, DENSITIES, st.integers(0, 50))
def test_values_survive_a_round_trip(shape, density, seed):
    mask, dense = random_mask(shape, density, seed), torch.randn(shape)
    for name in native.levels():
        with native.using(name):
            pattern = pack_pattern(mask)
            untouched = torch.full(shape, 7.0)
            scatter_(pattern, gather(pattern, dense), untouched)
        assert torch.equal(untouched, torch.where(mask, dense, 7.0)), name


@given(SHAPES, DENSITIES, DENSITIES, st.integers(0, 50), st.sampled_from([GEOMETRY, None]))
def test_transfer_moves_what_both_patterns_have(shape, before, after, seed, geometry):
    old, new, dense = random_mask(shape, before, seed), random_mask(shape, after, seed + 1), torch.randn(shape)
    for name in native.levels():
        with native.using(name):
            last, following = pack_pattern(old, geometry), pack_pattern(new, geometry)
            moved = transfer(last, gather(last, dense), following)
            result = scatter_(following, moved, torch.zeros(shape))
        assert torch.equal(result, torch.where(old & new, dense, 0.0)), name


def test_threads_do_not_change_the_words(level):
    mask = random_mask((700, 500), 0.1, 0)
    with_one = pack_pattern(mask).words
    native.set_threads(3)
    try:
        assert torch.equal(pack_pattern(mask).words, with_one)
    finally:
        native.set_threads(None)


@pytest.mark.parametrize("density", [1e-9, 0.01, 0.1, 0.5, 1.0])
def test_the_geometry_fits_the_kernels(density):
    for outputs, inputs in ((1, 1), (100, 4096), (4096, 16)):
        assert all(number % 64 == 0 and 0 < number <= 512 for number in geometry_of(outputs, inputs, density))


def test_scatter_is_seen_by_autograd():
    pattern = pack_pattern(torch.ones(2, 2, dtype=torch.bool))
    dense = torch.zeros(2, 2)
    before = dense._version
    scatter_(pattern, torch.ones(4), dense)
    assert dense._version > before


def test_altered_words_are_refused():
    if native.extension() is None:
        pytest.skip("the reference trusts its words")
    good = pack_pattern(torch.ones(3, 3, dtype=torch.bool))
    for position, value in ((0, 1), (1, 99), (2, -1), (4, 8), (5, 63), (6, 1 << 20)):
        words = good.words.clone()
        words[position] = value
        with pytest.raises(ValueError, match="pattern"):
            native.extension().train_gather(words.data_ptr(), words.numel(), 0, 0, 1)
    with pytest.raises(ValueError, match="truncated"):
        native.extension().train_gather(good.words.data_ptr(), good.words.numel() - 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 2), MaskError, "bool mask on the CPU, got torch.float32"),
        (torch.ones(2, 2, dtype=torch.bool, device="meta"), MaskError, "on meta"),
        (torch.ones(2, 2, 2, dtype=torch.bool), ShapeError, r"\(2, 2, 2\)"),
        (torch.ones(0, 4, dtype=torch.bool), ShapeError, r"\(0, 4\)"),
    ],
)
def test_bad_masks(mask, error, message):
    with pytest.raises(error, match=message):
        pack_pattern(mask)


def test_bad_moves():
    pattern = pack_pattern(torch.eye(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"weight \(3, 3\), but the tensor is \(3, 4\)"):
        gather(pattern, torch.zeros(3, 4))
    with pytest.raises(ShapeError, match=r"3 values, but the tensor is \(4,\)"):
        scatter_(pattern, torch.zeros(4), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="3 values"):
        transfer(pattern, torch.zeros(2), pattern)


def test_other_dtypes_move_by_the_reference():
    mask = random_mask((5, 9), 0.4, 3)
    pattern, dense = pack_pattern(mask), torch.randn(5, 9, dtype=torch.float64)
    values = gather(pattern, dense)
    assert values.dtype is torch.float64
    assert torch.equal(scatter_(pattern, values, torch.zeros_like(dense)), dense * mask)
    assert torch.equal(transfer(pattern, values, pattern), values)


# ---------------------------------------------------------------- the layer


def layer(shape: tuple[int, int], density: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.where(mask, torch.randn(shape, generator=generator), 0.0)
    return pack_pattern(mask), weight, torch.randn(shape[0], generator=generator)


def laid_out(samples: int, features: int, layout: str, generator: torch.Generator) -> torch.Tensor:
    """The same shape in several memory layouts."""
    if layout == "rows":
        return torch.randn(samples, features, generator=generator)
    if layout == "columns":
        return torch.randn(features, samples, generator=generator).t()
    if layout == "gaps":
        return torch.randn(features, samples + 5, generator=generator)[:, :samples].t()
    return torch.randn(2 * samples, 3 * features, generator=generator)[::2, ::3]


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([1, 7, 16, 48, 100, 130, 256]),
    st.sampled_from(["rows", "columns", "gaps", "strided"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_the_layer_is_the_masked_dense_one(outputs, inputs, density, samples, layout, relu, row_major, has_bias):
    pattern, weight, bias = layer((outputs, inputs), density, outputs)
    x = laid_out(samples, inputs, layout, torch.Generator().manual_seed(samples))
    dy = laid_out(samples, outputs, layout, torch.Generator().manual_seed(1))
    expected = _dense_gradients(x, weight, bias if has_bias else None, relu, dy)
    for name in native.levels():
        with native.using(name):
            got = _sparse_gradients(x, pattern, weight, bias if has_bias else None, relu, row_major, dy)
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def _dense_gradients(x, weight, bias, relu, dy):
    leaves = [x.double(), weight.double(), *([bias.double()] if bias is not None else [])]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    y = F.linear(*leaves)
    # where the sign of an output is a matter of rounding, so is the gradient: keep away from it
    y = (y + 0.0).relu() if relu else y
    y.backward(dy.double())
    gradients = [leaf.grad.float() for leaf in leaves]
    gradients[1] = torch.where(weight != 0, gradients[1], 0.0)
    return [y.float(), *gradients]


def _sparse_gradients(x, pattern, weight, bias, relu, row_major, dy):
    x, values = x.detach().requires_grad_(), gather(pattern, weight).requires_grad_()
    bias = None if bias is None else bias.clone().requires_grad_()
    y = sparse_linear(x, values, bias, pattern, relu=relu, row_major=row_major)
    y.backward(dy)
    dense = scatter_(pattern, values.grad, torch.zeros(weight.shape))
    return [y.detach(), x.grad, dense, *([bias.grad] if bias is not None else [])]


@pytest.mark.parametrize("samples", [64, 100, 300])
def test_any_number_of_threads_gives_the_same_bits(level, samples):
    pattern, weight, bias = layer((700, 400), 0.1, 0)
    x, dy = torch.randn(samples, 400), torch.randn(samples, 700)
    alone = _sparse_gradients(x, pattern, weight, bias, True, False, dy)
    native.set_threads(3)
    try:
        together = _sparse_gradients(x, pattern, weight, bias, True, False, dy)
    finally:
        native.set_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("wanted", ["x", "values", "bias"])
def test_only_what_is_wanted_is_computed(level, wanted):
    pattern, weight, bias = layer((30, 40), 0.2, 0)
    leaves = {"x": torch.randn(20, 40), "values": gather(pattern, weight), "bias": bias}
    leaves[wanted].requires_grad_()
    sparse_linear(leaves["x"], leaves["values"], leaves["bias"], pattern).square().sum().backward()
    assert leaves[wanted].grad is not None
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != wanted)


@pytest.mark.parametrize("row_major", [True, False])
def test_no_samples(level, row_major):
    pattern, weight, bias = layer((3, 4), 0.5, 0)
    x, values = torch.randn(0, 4, requires_grad=True), gather(pattern, weight).requires_grad_()
    y = sparse_linear(x, values, bias, pattern, row_major=row_major)
    y.sum().backward()
    assert y.shape == (0, 3)
    assert x.grad.shape == (0, 4)
    assert not values.grad.any()


def test_leading_dimensions(level):
    pattern, weight, bias = layer((6, 5), 0.5, 0)
    values, x = gather(pattern, weight), torch.randn(2, 3, 5)
    for row_major in (True, False):
        y = sparse_linear(x, values, bias, pattern, row_major=row_major)
        torch.testing.assert_close(y, F.linear(x, weight, bias))
    assert sparse_linear(x[0, 0], values, bias, pattern).shape == (6,)


def test_layout_of_the_result(level):
    pattern, weight, _ = layer((6, 5), 0.5, 0)
    values, x = gather(pattern, weight), torch.randn(32, 5)
    assert sparse_linear(x, values, None, pattern).is_contiguous()
    assert sparse_linear(x, values, None, pattern, row_major=False).stride() == (1, 32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_only_outputs_that_have_a_weight_on_it(bad):
    for name in native.levels()[1:]:
        with native.using(name):
            pattern = pack_pattern(torch.tensor([[True, False], [False, True], [True, True]]))
            x = torch.tensor([[bad, 1.0]])
            y = sparse_linear(x, torch.ones(4), None, pattern, relu=True)
        assert y[0].isfinite().tolist() == [False, True, False], name


def test_relu_lets_nan_through_as_torch_does(level):
    pattern = pack_pattern(torch.ones(1, 1, dtype=torch.bool))
    values = torch.ones(1, requires_grad=True)
    y = sparse_linear(torch.tensor([[float("nan")]]), values, None, pattern, relu=True)
    y.sum().backward()
    assert y.isnan().all()
    assert values.grad.isnan().all()


def test_gradients_by_finite_differences(level):
    pattern, weight, bias = layer((9, 8), 0.4, 0)
    values, x = gather(pattern, weight), torch.randn(4, 8)
    values.requires_grad_()
    sparse_linear(x, values, bias, pattern).square().sum().backward()
    nudge = 1e-2 * torch.randn(values.shape)
    with torch.no_grad():
        rise = [sparse_linear(x, values + s * nudge, bias, pattern).double().square().sum() for s in (1, -1)]
    assert float(rise[0] - rise[1]) / 2 == pytest.approx(float(values.grad @ nudge), rel=1e-3)


def test_opcheck(level):
    pattern, weight, bias = layer((12, 10), 0.3, 0)
    shape = [12, 10, pattern.nonzeros, *pattern.geometry]
    values = gather(pattern, weight).requires_grad_()
    for samples, relu, row_major in ((32, True, False), (9, False, True), (9, True, False)):
        x = torch.randn(samples, 10, requires_grad=True)
        args = (x, values, bias, pattern.words, shape, relu, row_major)
        torch.library.opcheck(sparse_train._linear_op, args)
        y = sparse_train._linear_op(*args).detach()
        back = (torch.randn(samples, 12), x.detach(), y, values.detach(), pattern.words, shape, [True, True, True])
        torch.library.opcheck(sparse_train._backward_op, back)


@pytest.mark.parametrize(
    ("x", "values", "bias", "error", "message"),
    [
        (torch.randn(2, 5), torch.randn(3), None, ShapeError, "3 inputs, but x has shape"),
        (torch.tensor(1.0), torch.randn(3), None, ShapeError, "3 inputs"),
        (torch.randn(2, 3), torch.randn(4), None, ShapeError, "3 values"),
        (torch.randn(2, 3), torch.randn(3), torch.randn(2), ShapeError, "3 outputs, but the bias"),
        (torch.randn(2, 3).double(), torch.randn(3), None, ConfigError, "x is torch.float64"),
        (torch.randn(2, 3), torch.randn(3).half(), None, ConfigError, "values is torch.float16"),
        (torch.randn(2, 3, device="meta"), torch.randn(3), None, ConfigError, "on meta"),
    ],
)
def test_bad_input(x, values, bias, error, message):
    pattern = pack_pattern(torch.eye(3, dtype=torch.bool))
    with pytest.raises(error, match=message):
        sparse_linear(x, values, bias, pattern)
