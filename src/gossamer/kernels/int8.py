"""A sparse layer in 8-bit integers, for a vector or a few: 9 to 40 % of the bytes of bfloat16, exact integer sums.

    >>> weight = pack_int8(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> gemv_int8(weight, torch.tensor([1.0, 4.0]))
    tensor([8.0000, 1.0079])

Weights are rounded once, by row; activations as they come, each vector by its largest entry, so nothing of them has to
be calibrated. Sums are integers: results have the same bits at every processor level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gossamer.errors import CheckpointError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.epilogue import (
    activation_code,
    check_layer,
    finish_reference,
    is_eager,
    run_layer,
    runs_native,
)
from gossamer.kernels.formats import bitmap_of, pack_bitmap

MOST_COLUMNS = 1 << 16  # kMostInt8Columns in csrc/sparse/int8.hpp
_LARGEST = 127
_BEYOND = 64  # bytes that kernels may read past the last value (kBytesBeyond)
_SHRINKAGES = torch.linspace(1.0, 0.6, 9)  # of a row's range, tried by pack_int8


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A sparse (rows, columns) matrix of integers with a scale for each row; made by `pack_int8`.

    Attributes:
        pointers: int32 (rows + 1), as in a bitmap `PackedWeight`.
        bits: int64 (rows, ceil(columns / 64)), likewise.
        values: int8 (entries + 64) in -127..127; the last 64 are padding.
        scales: float32 (rows): weight = value * scale.
        offsets: int32 (rows): 128 times the sum of a row's values.
    Raises:
        CheckpointError: sizes disagree, or pointers and bits do.
    """

    rows: int
    columns: int
    pointers: Tensor
    bits: Tensor
    values: Tensor
    scales: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.columns <= MOST_COLUMNS:
            raise CheckpointError(f"8-bit weights have up to {MOST_COLUMNS} columns, not {self.columns}")
        entries = self.values.numel() - _BEYOND
        kinds = {"values": torch.int8, "scales": torch.float32, "offsets": torch.int32}
        for name, dtype in kinds.items():
            tensor = getattr(self, name)
            if tensor.dtype is not dtype or not tensor.is_contiguous() or not tensor.is_cpu:
                raise CheckpointError(f"8-bit weights need contiguous {dtype} {name} on the CPU")
        if entries < 0 or len(self.scales) != self.rows or len(self.offsets) != self.rows:
            raise CheckpointError(f"8-bit weights of {self.rows} rows need as many scales and offsets")
        # checks pointers and bits, which alone can lead outside of memory
        if bitmap_of(self.rows, self.columns, self.pointers, self.bits).entries != entries:
            raise CheckpointError(f"8-bit weights have {entries} values, which disagrees with the pointers")

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.pointers, self.bits, self.values, self.scales, self.offsets))

    @property
    def density(self) -> float:
        return (self.values.numel() - _BEYOND) / max(1, self.rows * self.columns)

    def unpack(self) -> Tensor:
        """The dense (rows, columns) float32 matrix."""
        packed = bitmap_of(self.rows, self.columns, self.pointers, self.bits, self.values[:-_BEYOND].float())
        return packed.unpack() * self.scales[:, None]


def pack_int8(weight: Tensor, search: bool = True) -> Int8Weight:
    """Round a weight (out, in) to 8 bits by row, zeros left out.

    Args:
        search: choose each row's range for the least squared error among 60 to 100 % of its largest weight; else
            the largest weight.
    Raises:
        NumericsError, ShapeError: as `pack_bitmap`, or more than 65536 columns.
    """
    packed = pack_bitmap(weight)
    rows, columns = packed.rows, packed.columns
    if columns > MOST_COLUMNS:
        raise ShapeError(f"8-bit weights have up to {MOST_COLUMNS} columns, not {columns}")
    dense = weight.detach().to("cpu", torch.float32).flatten(1)
    scales = _scales(dense, search)
    row = torch.repeat_interleave(torch.arange(rows), packed.pointers.diff().long())
    rounded = _round(packed.values[: packed.entries], scales[row])
    offsets = torch.zeros(rows, dtype=torch.int32).index_add(0, row, rounded.to(torch.int32)) * 128
    values = torch.cat([rounded, torch.zeros(_BEYOND)]).to(torch.int8)
    return Int8Weight(rows, columns, packed.pointers, packed.bits, values, scales, offsets)


def _scales(dense: Tensor, search: bool) -> Tensor:
    if dense.numel() == 0:
        return torch.zeros(len(dense))
    largest = dense.abs().amax(1) / _LARGEST
    if not search:
        return largest
    best, error = largest, torch.full_like(largest, float("inf"))
    for shrinkage in _SHRINKAGES:
        scales = largest * shrinkage
        here = (_round(dense, scales[:, None]) * scales[:, None] - dense).square().sum(1)
        best, error = torch.where(here < error, scales, best), torch.minimum(here, error)
    return best


def _round(values: Tensor, scales: Tensor) -> Tensor:
    return (values / scales.clamp(min=1e-38)).round().clamp(-_LARGEST, _LARGEST)


def gemv_int8(
    weight: Int8Weight,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x @ weight.T + bias + residual) with x rounded to 8 bits, one vector after another.

    Args:
        x: (..., in), float32. A vector with an infinity or a NaN gives NaN everywhere.
        bias: (out,).
        residual: (..., out), added before the activation.
        activation: none, relu, relu6, hardswish or gelu.
    Returns:
        (..., out), float32; the same bits for any number of threads and, without gelu or hardswish, at every level.
    Raises:
        ConfigError, ShapeError: a dtype, activation or size that does not fit.
    Source: symmetric rounding by row and by token, as in LLM.int8 (Dettmers et al. 2022), section 2.
    """
    code = activation_code(activation)
    check_layer(weight.rows, weight.columns, x, bias, residual)
    if is_eager(x, bias, residual):
        return _run(weight, x, bias, residual, code)
    arrays = (weight.pointers, weight.bits, weight.values, weight.scales, weight.offsets)
    return _gemv(x, *arrays, [weight.rows, weight.columns], bias, residual, code)


def gemv_int8_reference(
    weight: Int8Weight, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    """`gemv_int8` in plain torch; float64 holds the integer sums exactly."""
    packed = bitmap_of(weight.rows, weight.columns, weight.pointers, weight.bits, weight.values[:-_BEYOND].float())
    largest = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    factor = torch.where(largest > 0, _LARGEST / largest, 0.0)
    rounded = (x * factor).clamp(-_LARGEST, _LARGEST).round()
    rounded = torch.where(largest.isfinite(), rounded, 0.0)
    sums = (rounded.double() @ packed.unpack().double().to(x.device).t()).float()
    y = sums * (weight.scales.to(x.device) * (largest / _LARGEST))
    return finish_reference(y, bias, residual, code, -1)


def _run(weight: Int8Weight, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    extension = native.extension() if runs_native(x, bias, residual) else None
    if extension is None:
        return gemv_int8_reference(weight, x, bias, residual, code)
    tensors = (weight.pointers, weight.values, weight.bits, weight.scales, weight.offsets)
    run = partial(extension.gemv_int8, (weight.rows, weight.columns), tuple(t.data_ptr() for t in tensors))
    return run_layer(run, weight.rows, x, bias, residual, code)


@torch.library.custom_op("gossamer::sparse_gemv_int8", mutates_args=())
def _gemv(
    x: Tensor,
    pointers: Tensor,
    bits: Tensor,
    values: Tensor,
    scales: Tensor,
    offsets: Tensor,
    shape: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    rows, columns = shape
    return _run(Int8Weight(rows, columns, pointers, bits, values, scales, offsets), x, bias, residual, activation)


@_gemv.register_fake
def _(
    x: Tensor,
    pointers: Tensor,
    bits: Tensor,
    values: Tensor,
    scales: Tensor,
    offsets: Tensor,
    shape: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))
