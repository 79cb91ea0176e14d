"""In-place masking: exact zeros for every dtype and layout, autograd safety, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import MaskError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.masking import apply_mask_, apply_masks_

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int8,
    torch.complex64,
)


@given(st.lists(st.integers(0, 40), max_size=3), st.integers(0, 100), st.sampled_from(DTYPES))
def test_it_is_where_at_every_level(shape, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).mul(9).to(dtype)
    mask = torch.rand(shape, generator=generator) < 0.5
    expected = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
    for name in native.levels():
        with native.using(name):
            assert torch.equal(apply_mask_(tensor.clone(), mask), expected), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_pruned_values_become_positive_zero(level, bad, dtype):
    tensor = apply_mask_(torch.full((67,), bad, dtype=dtype), torch.zeros(67, dtype=torch.bool))
    assert not tensor.count_nonzero()
    assert not torch.signbit(tensor).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.0, 1e-45])
def test_kept_values_keep_their_bits(level, bad):
    tensor = torch.full((67,), bad)
    before = tensor.view(torch.int32).clone()
    apply_mask_(tensor, torch.ones(67, dtype=torch.bool))
    assert torch.equal(tensor.view(torch.int32), before)


@pytest.mark.parametrize(
    ("of_tensor", "of_mask"),
    [
        (lambda t: t, lambda m: m.to(memory_format=torch.channels_last)),
        (lambda t: t.to(memory_format=torch.channels_last), lambda m: m),
        (
            lambda t: t.to(memory_format=torch.channels_last),
            lambda m: m.to(memory_format=torch.channels_last),
        ),
        (lambda t: t.transpose(0, 1), lambda m: m.transpose(0, 1)),
        (lambda t: t[1:, ::2], lambda m: m[1:, ::2]),
        (lambda t: t, lambda m: m[:1].expand(5, -1, -1, -1)),
    ],
)
def test_every_layout(level, of_tensor, of_mask):
    tensor, mask = of_tensor(torch.randn(5, 6, 3, 3)), of_mask(torch.rand(5, 6, 3, 3) < 0.5)
    expected = torch.where(mask, tensor, torch.zeros(()))
    assert torch.equal(apply_mask_(tensor, mask), expected)


def test_a_view_leaves_its_surroundings(level):
    whole = torch.ones(10)
    apply_mask_(whole[3:6], torch.zeros(3, dtype=torch.bool))
    assert whole.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 1]


def test_many_tensors_at_once_for_any_thread_count(level):
    shapes = [(3,), (0,), (), (300, 500), (64, 32, 3, 3)]
    tensors = [torch.randn(s, dtype=t) for s in shapes for t in (torch.float32, torch.bfloat16, torch.float64)]
    masks = [torch.rand(t.shape) < 0.3 for t in tensors]
    expected = [torch.where(m, t, torch.zeros((), dtype=t.dtype)) for t, m in zip(tensors, masks, strict=True)]
    try:
        for count in (1, 3):
            native.set_threads(count)
            found = [t.clone() for t in tensors]
            apply_masks_(found, masks)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        native.set_threads(None)
    apply_masks_([], [])


def test_parameters_are_masked_outside_of_autograd(level):
    weight = torch.nn.Parameter(torch.ones(4))
    apply_mask_(weight, torch.tensor([True, False, True, False]))
    assert weight.tolist() == [1, 0, 1, 0]
    assert weight.is_leaf
    assert weight.requires_grad


def test_autograd_notices_a_change_of_a_saved_tensor(level):
    x = torch.ones(3, requires_grad=True)
    saved = x.exp()
    total = saved.sum()
    apply_mask_(saved.detach(), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_it_compiles_without_a_break(level):
    mask = torch.tensor([True, False, True])

    def step(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        apply_masks_([y], [mask])
        return y + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(3)).tolist() == [3, 1, 3]


def test_opcheck(level):
    tensors, masks = [torch.randn(3, 5), torch.randn(7)], [torch.rand(3, 5) < 0.5, torch.rand(7) < 0.5]
    torch.library.opcheck(torch.ops.gossamer.apply_masks_.default, (tensors, masks))


def test_bad_input_is_named():
    with pytest.raises(MaskError, match=r"mask 0 must be bool.*torch\.float32"):
        apply_mask_(torch.ones(3), torch.ones(3))
    with pytest.raises(ShapeError, match=r"mask 0 has shape \(2,\), but its tensor has \(3,\)"):
        apply_mask_(torch.ones(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(MaskError, match="2 tensors need as many masks, got 1"):
        apply_masks_([torch.ones(1)] * 2, [torch.ones(1, dtype=torch.bool)])
    with pytest.raises(MaskError, match="mask 0 is on meta, but its tensor is on cpu"):
        apply_mask_(torch.ones(3), torch.ones(3, dtype=torch.bool, device="meta"))
