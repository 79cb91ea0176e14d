"""Bit packing: exact layout, round trips, all levels equal, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gossamer.errors import MaskError, ShapeError
from gossamer.kernels import bitmap, native

SHAPES = st.lists(st.integers(0, 9), max_size=3).flatmap(
    lambda lead: st.integers(0, 200).map(lambda n: (*lead, n))
) | st.just(())


def random_mask(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(SHAPES, st.integers(0, 1000))
@example((), 0)
@example((0,), 0)
@example((3, 0), 0)
@example((0, 64), 0)
@example((2, 127), 1)
def test_all_levels_agree_with_numpy_and_round_trip(shape, seed):
    mask = random_mask(shape, seed)
    rows = mask.numpy() if mask.dim() else mask.numpy().reshape(1)
    expected = torch.from_numpy(np.packbits(rows, axis=-1, bitorder="little"))
    for name in native.levels():
        with native.using(name):
            bits = bitmap.pack(mask)
            assert torch.equal(bits, expected), name
            assert torch.equal(bitmap.unpack(bits, shape), mask), name
            assert bitmap.popcount(bits) == int(mask.sum()), name


def test_bit_i_of_byte_j_is_element_8j_plus_i(level):
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[0, 0] = mask[0, 9] = mask[1, 7] = True
    assert bitmap.pack(mask).tolist() == [[1, 2], [128, 0]]


@pytest.mark.parametrize(
    "view", [lambda m: m.t(), lambda m: m[:, ::2], lambda m: m[1:, 3:], lambda m: m.expand(3, -1, -1)]
)
def test_strided_masks_pack_like_their_copy(level, view):
    mask = view(random_mask((33, 70), 0))
    bits = bitmap.pack(mask)
    assert torch.equal(bits, bitmap.pack_reference(mask.contiguous()))
    assert torch.equal(bitmap.unpack(bits.t().contiguous().t() if bits.dim() == 2 else bits, mask.shape), mask)


def test_spare_bits_are_ignored_by_unpack(level):
    assert bitmap.unpack(torch.tensor([255], dtype=torch.uint8), (3,)).tolist() == [True] * 3


def test_unpack_does_not_share_memory(level):
    bits = bitmap.pack(torch.ones(16, dtype=torch.bool))
    mask = bitmap.unpack(bits, (16,))
    mask.zero_()
    assert bitmap.popcount(bits) == 16


def test_any_thread_count_gives_the_same_bits():
    mask = random_mask((500, 1001), 3)
    expected = bitmap.pack_reference(mask)
    try:
        for count in (1, 2, 5):
            native.set_threads(count)
            assert torch.equal(bitmap.pack(mask), expected)
            assert torch.equal(bitmap.unpack(expected, mask.shape), mask)
            assert bitmap.popcount(expected) == int(mask.sum())
    finally:
        native.set_threads(None)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 17), (2, 3, 64)])
def test_opcheck(level, shape):
    mask = random_mask(shape, 0)
    torch.library.opcheck(torch.ops.gossamer.pack.default, (mask,))
    bits = bitmap.pack(mask)
    torch.library.opcheck(torch.ops.gossamer.unpack.default, (bits, list(shape)))
    torch.library.opcheck(torch.ops.gossamer.popcount.default, (bits,))


def test_bad_input_is_named():
    with pytest.raises(MaskError, match=r"bool mask, got torch\.float32"):
        bitmap.pack(torch.ones(3))
    with pytest.raises(MaskError, match=r"uint8, got torch\.int64"):
        bitmap.unpack(torch.ones(1, dtype=torch.int64), (3,))
    with pytest.raises(MaskError, match=r"uint8, got torch\.bool"):
        bitmap.popcount(torch.ones(1, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\(2, 9\) packs into \(2, 2\), but these bits are \(2, 1\)"):
        bitmap.unpack(torch.zeros(2, 1, dtype=torch.uint8), (2, 9))
