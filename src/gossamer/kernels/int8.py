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
from gossamer.kernels.epilogue import activation_code, check_layer, finish_reference, is_eager, run_native
from gossamer.kernels.pack import bitmap_of, matrix_of, pack_bitmap

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
        return self.integers() * self.scales[:, None]

    def integers(self) -> Tensor:
        """The dense (rows, columns) matrix of values, float32."""
        values = self.values[:-_BEYOND].float()
        return bitmap_of(self.rows, self.columns, self.pointers, self.bits, values).unpack()


def pack_int8(weight: Tensor, search: bool = True) -> Int8Weight:
    """Round a weight (out, in) to 8 bits by row, zeros left out.

    Args:
        search: choose each row's range for the least squared error among 60 to 100 % of its largest weight; else
            the largest weight.
    Raises:
        NumericsError, ShapeError: as `pack_bitmap`, or more than 65536 columns.
    """
    dense, scales = round_weight(weight, search)
    packed = pack_bitmap(dense)
    values = torch.cat([packed.values[: packed.entries], torch.zeros(_BEYOND)]).to(torch.int8)
    return Int8Weight(packed.rows, packed.columns, packed.pointers, packed.bits, values, scales, offsets_of(dense))


def round_weight(weight: Tensor, search: bool) -> tuple[Tensor, Tensor]:
    """The weight (out, in) as whole numbers in -127..127, float32, and the scale of each row; see pack_int8."""
    dense = matrix_of(weight)
    if dense.shape[1] > MOST_COLUMNS:
        raise ShapeError(f"8-bit weights have up to {MOST_COLUMNS} columns, not {dense.shape[1]}")
    scales = _scales(dense, search)
    return _round(dense, scales[:, None]), scales


def offsets_of(dense: Tensor) -> Tensor:
    """128 times the sum of each row of whole numbers, int32: what shifting activations to 0..255 adds."""
    return (128 * dense.double().sum(1)).to(torch.int32)


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
        activation: none, relu, relu6, hardswish, gelu, silu, sigmoid or hardsigmoid.
    Returns:
        (..., out), float32; the same bits for any number of threads and, with none, relu or relu6, at every level.
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


def int8_reference(
    integers: Tensor, scales: Tensor, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    """`gemv_int8` in plain torch, from the weight's whole numbers; float64 holds the integer sums exactly."""
    largest = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    factor = torch.where(largest > 0, _LARGEST / largest, 0.0)
    rounded = (x * factor).clamp(-_LARGEST, _LARGEST).round()
    rounded = torch.where(largest.isfinite(), rounded, 0.0)
    sums = (rounded.double() @ integers.double().to(x.device).t()).float()
    y = sums * (scales.to(x.device) * (largest / _LARGEST))
    return finish_reference(y, bias, residual, code, -1)


def _run(weight: Int8Weight, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    tensors = (weight.pointers, weight.values, weight.bits, weight.scales, weight.offsets)
    addresses = tuple(t.data_ptr() for t in tensors)
    return run_native(
        lambda extension: partial(extension.gemv_int8, (weight.rows, weight.columns), addresses),
        lambda: int8_reference(weight.integers(), weight.scales, x, bias, residual, code),
        weight.rows, x, bias, residual, code,
    )  # fmt: skip


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
