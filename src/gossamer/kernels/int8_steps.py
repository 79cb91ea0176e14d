"""8-bit products for few weights: a step multiplies four weights of each of sixteen rows, wherever they lie in a panel.

    >>> weight = pack_int8_steps(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> gemv_int8_steps(weight, torch.tensor([1.0, 4.0]))
    tensor([8.0000, 1.0079])

A bitmap (`int8.py`) spends an instruction on each 64 columns, weights or none. Below a density of some 0.3 it is faster
to look up what each weight meets: two registers hold a panel of 128 rounded activations, and one instruction picks any
64 bytes of them. Numbers and results are those of `pack_int8` and `gemv_int8`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gossamer.errors import CheckpointError
from gossamer.kernels.epilogue import activation_code, check_layer, is_eager, run_native
from gossamer.kernels.int8 import MOST_COLUMNS, int8_reference, offsets_of, round_weight

_GROUP, _PANEL, _STEP = 16, 128, 64  # Int8Steps in csrc/sparse/int8.hpp
_EACH = _STEP // _GROUP  # weights of a row in a step


@dataclass(frozen=True, eq=False)
class Int8Steps:
    """A sparse (rows, columns) matrix of integers with a scale for each row; made by `pack_int8_steps`.

    Rows go in groups of 16, columns in panels of 128. Step s holds values[64 s] up to values[64 s + 63]: four of each
    row of its group, at the columns `places` of its panel; rows with fewer are filled up with zeros.

    Attributes:
        starts: int32 (groups * panels + 1): first step of each (group, panel).
        values: int8 (64 * steps) in -127..127.
        places: uint8 (64 * steps), below 128.
        scales: float32 (rows): weight = value * scale.
        offsets: int32 (rows): 128 times the sum of a row's values.
    Raises:
        CheckpointError: sizes disagree, or a start or a place is out of range.
    """

    rows: int
    columns: int
    starts: Tensor
    values: Tensor
    places: Tensor
    scales: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        if self.rows < 0 or not 0 <= self.columns <= MOST_COLUMNS:
            raise CheckpointError(f"8-bit weights have up to {MOST_COLUMNS} columns, not {self.columns}")
        kinds = {
            "starts": (torch.int32, self.groups * self.panels + 1),
            "values": (torch.int8, self.places.numel()),
            "places": (torch.uint8, self.values.numel()),
            "scales": (torch.float32, self.rows),
            "offsets": (torch.int32, self.rows),
        }
        for name, (dtype, count) in kinds.items():
            tensor = getattr(self, name)
            if tensor.dtype is not dtype or tensor.numel() != count or not tensor.is_contiguous() or not tensor.is_cpu:
                raise CheckpointError(f"these 8-bit weights need {count} contiguous {dtype} {name} on the CPU")
        steps = self.starts.diff()
        if int(self.starts[0]) != 0 or bool((steps < 0).any()) or int(self.starts[-1]) * _STEP != self.values.numel():
            raise CheckpointError("the starts of 8-bit weights fall, or disagree with the values")
        if bool((self._columns() >= self.columns).any()) or bool((self.places >= _PANEL).any()):
            raise CheckpointError("a place of 8-bit weights is out of range")

    @property
    def groups(self) -> int:
        return -(-self.rows // _GROUP)

    @property
    def panels(self) -> int:
        return -(-self.columns // _PANEL)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.starts, self.values, self.places, self.scales, self.offsets))

    @property
    def density(self) -> float:
        """Values that are not zero by places in the matrix."""
        return int(torch.count_nonzero(self.values)) / max(1, self.rows * self.columns)

    def _cells(self) -> Tensor:
        """group * panels + panel of each step."""
        return torch.repeat_interleave(torch.arange(len(self.starts) - 1), self.starts.diff().long())

    def _columns(self) -> Tensor:
        """(steps, 64): column of each value."""
        return (self._cells() % max(1, self.panels))[:, None] * _PANEL + self.places.view(-1, _STEP).long()

    def integers(self) -> Tensor:
        """The dense (rows, columns) matrix of values, float32."""
        dense = torch.zeros(self.groups * _GROUP, self.columns)
        rows = (self._cells() // max(1, self.panels))[:, None] * _GROUP + torch.arange(_STEP) // _EACH
        values = self.values.view(-1, _STEP).float()
        return dense.index_put((rows, self._columns()), values, accumulate=True)[: self.rows]

    def unpack(self) -> Tensor:
        """The dense (rows, columns) float32 matrix."""
        return self.integers() * self.scales[:, None]


def pack_int8_steps(weight: Tensor, search: bool = True) -> Int8Steps:
    """`pack_int8` in steps.

    Raises:
        NumericsError, ShapeError: as `pack_int8`.
    """
    dense, scales = round_weight(weight, search)
    rows, columns = dense.shape
    groups, panels = -(-rows // _GROUP), -(-columns // _PANEL)
    padded = torch.nn.functional.pad(dense, (0, panels * _PANEL - columns, 0, groups * _GROUP - rows))
    cells = padded.view(groups, _GROUP, panels, _PANEL).transpose(1, 2)  # (groups, panels, 16, 128)
    kept = cells != 0
    most = kept.sum(-1).amax(-1) if cells.numel() else torch.zeros(groups, panels, dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (-(-most // _EACH)).flatten().cumsum(0)])
    group, panel, row, place = kept.nonzero(as_tuple=True)
    rank = (kept.cumsum(-1) - 1)[kept]
    slot = (starts[group * panels + panel] + rank // _EACH) * _STEP + row * _EACH + rank % _EACH
    size = int(starts[-1]) * _STEP
    values, places = torch.zeros(size, dtype=torch.int8), torch.zeros(size, dtype=torch.uint8)
    values[slot], places[slot] = cells[kept].to(torch.int8), place.to(torch.uint8)
    return Int8Steps(rows, columns, starts.to(torch.int32), values, places, scales, offsets_of(dense))


def gemv_int8_steps(
    weight: Int8Steps,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`gemv_int8` of a weight in steps: the same arguments, errors and bits."""
    code = activation_code(activation)
    check_layer(weight.rows, weight.columns, x, bias, residual)
    if is_eager(x, bias, residual):
        return _run(weight, x, bias, residual, code)
    arrays = (weight.starts, weight.values, weight.places, weight.scales, weight.offsets)
    return _gemv(x, *arrays, [weight.rows, weight.columns], bias, residual, code)


def _run(weight: Int8Steps, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    tensors = (weight.starts, weight.values, weight.places, weight.scales, weight.offsets)
    addresses = tuple(t.data_ptr() for t in tensors)
    return run_native(
        lambda extension: partial(extension.gemv_int8_steps, (weight.rows, weight.columns), addresses),
        lambda: int8_reference(weight.integers(), weight.scales, x, bias, residual, code),
        weight.rows, x, bias, residual, code,
    )  # fmt: skip


@torch.library.custom_op("gossamer::sparse_gemv_int8_steps", mutates_args=())
def _gemv(
    x: Tensor,
    starts: Tensor,
    values: Tensor,
    places: Tensor,
    scales: Tensor,
    offsets: Tensor,
    shape: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    rows, columns = shape
    return _run(Int8Steps(rows, columns, starts, values, places, scales, offsets), x, bias, residual, activation)


@_gemv.register_fake
def _(
    x: Tensor,
    starts: Tensor,
    values: Tensor,
    places: Tensor,
    scales: Tensor,
    offsets: Tensor,
    shape: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))
