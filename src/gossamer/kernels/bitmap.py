"""Masks as bits: one bit per weight, little-endian, each row padded to a byte.

>>> bits = pack(torch.tensor([[True, False, True], [False, True, True]]))
>>> bits.tolist()
[[5], [6]]
>>> unpack(bits, (2, 3)).tolist()
[[True, False, True], [False, True, True]]
>>> popcount(bits)
4
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.errors import MaskError, ShapeError
from gossamer.kernels import native


def pack(mask: Tensor) -> Tensor:
    """Eight bools a byte along the last axis: bit i of byte j is element 8 j + i, spare bits are zero.

    Args:
        mask: (..., n), bool. A 0-d mask counts as a row of one.
    Returns:
        uint8 (..., ceil(n / 8)) on the same device.
    Raises:
        MaskError: the mask is not bool.
    """
    if mask.dtype is not torch.bool:
        raise MaskError(f"pack needs a bool mask, got {mask.dtype}; compare with zero first, e.g. weight != 0")
    return _pack(mask)


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool mask of this shape that `pack` turned into `bits`.

    Args:
        bits: uint8 (..., ceil(n / 8)); spare bits are ignored.
        shape: (..., n) of the mask.
    Raises:
        MaskError: bits are not uint8.
        ShapeError: bits do not fit the shape.
    """
    if bits.dtype is not torch.uint8:
        raise MaskError(f"packed masks are uint8, got {bits.dtype}")
    expected = packed_shape(shape)
    if tuple(bits.shape) != expected:
        raise ShapeError(
            f"a mask of shape {tuple(shape)} packs into {expected}, but these bits are {tuple(bits.shape)}"
        )
    return _unpack(bits, list(shape))


def popcount(bits: Tensor) -> int:
    """How many bits are set in a uint8 tensor of any shape.

    Raises:
        MaskError: bits are not uint8.
    """
    if bits.dtype is not torch.uint8:
        raise MaskError(f"packed masks are uint8, got {bits.dtype}")
    return int(_popcount(bits))


def packed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of `pack(mask)` for a mask of this shape."""
    rows, n = _rows(shape)
    return (*rows, math.ceil(n / 8))


def _rows(shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """A shape as (leading dimensions, length of a row)."""
    return (tuple(shape[:-1]), shape[-1]) if len(shape) else ((), 1)


def pack_reference(mask: Tensor) -> Tensor:
    """`pack` in plain torch."""
    rows, n = _rows(mask.shape)
    padded = torch.nn.functional.pad(mask.reshape(*rows, n).to(torch.uint8), (0, -n % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.unflatten(-1, (math.ceil(n / 8), 8)) * weights).sum(-1, dtype=torch.uint8)


def unpack_reference(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """`unpack` in plain torch."""
    _, n = _rows(shape)
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    bools = (bits.unsqueeze(-1) >> places & 1).bool().flatten(-2)
    return bools[..., :n].reshape(tuple(shape)).clone()


def popcount_reference(bits: Tensor) -> Tensor:
    """`popcount` in plain torch, as a 0-d int64 tensor."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> places & 1).sum(dtype=torch.int64)


@torch.library.custom_op("gossamer::pack", mutates_args=())
def _pack(mask: Tensor) -> Tensor:
    extension = native.extension() if mask.device.type == "cpu" else None
    if extension is None:
        return pack_reference(mask)
    mask = mask.contiguous()
    bits = torch.empty(packed_shape(mask.shape), dtype=torch.uint8)
    rows, n = _rows(mask.shape)
    extension.pack(mask.data_ptr(), bits.data_ptr(), math.prod(rows), n, native.threads())
    return bits


@_pack.register_fake
def _(mask: Tensor) -> Tensor:
    rows, n = _rows(mask.shape)
    return mask.new_empty((*rows, (n + 7) // 8), dtype=torch.uint8)


@torch.library.custom_op("gossamer::unpack", mutates_args=())
def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    extension = native.extension() if bits.device.type == "cpu" else None
    if extension is None:
        return unpack_reference(bits, shape)
    bits = bits.contiguous()
    mask = torch.empty(shape, dtype=torch.bool)
    rows, n = _rows(shape)
    extension.unpack(bits.data_ptr(), mask.data_ptr(), math.prod(rows), n, native.threads())
    return mask


@_unpack.register_fake
def _(bits: Tensor, shape: list[int]) -> Tensor:
    return bits.new_empty(shape, dtype=torch.bool)


@torch.library.custom_op("gossamer::popcount", mutates_args=())
def _popcount(bits: Tensor) -> Tensor:
    extension = native.extension() if bits.device.type == "cpu" else None
    if extension is None:
        return popcount_reference(bits)
    bits = bits.contiguous()
    return torch.tensor(extension.popcount(bits.data_ptr(), bits.numel(), native.threads()), dtype=torch.int64)


@_popcount.register_fake
def _(bits: Tensor) -> Tensor:
    return bits.new_empty((), dtype=torch.int64)
