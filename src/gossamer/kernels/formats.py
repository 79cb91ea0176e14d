"""Sparse weights as flat buffers, in the layouts that the native kernels read.

    >>> from gossamer.kernels.pack import pack_csr_panel
    >>> weight = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    >>> packed = pack_csr_panel(weight)
    >>> torch.equal(PackedWeight.from_buffer(packed.to_buffer()).unpack(), weight)
    True

`csr_panel`, `csr_code`, `block` and `bf16` feed products with many columns (`spmm`, `conv2d`, `linear`), `bitmap` and
`csr16` products with a vector (`gemv`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gossamer.errors import CheckpointError
from gossamer.kernels import buffers, native

BLOCKS = (4, 8, 16)
MANY_COLUMNS = ("csr_panel", "csr_code", "block", "bf16")  # kinds for products with many columns
MOST_CODE = 1 << 22  # bytes of machine code for one weight (kMostCode in csrc/sparse/code.hpp)
_KINDS = ("csr_panel", "block", "bitmap", "csr16", "csr_code", "bf16")
VALUES = (torch.float32, torch.bfloat16)
MOST_ENTRIES = 2**31 - 1
MOST_COLUMNS = 2**16  # that a 16-bit index reaches
BEYOND = 16  # values that the bitmap kernels may read past the last (kValuesBeyond in csrc/sparse/gemv.hpp)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A sparse (rows, columns) matrix. Made by the `pack_*` functions or `from_buffer`; checked on construction.

    Entries are ordered by panel of columns, then by strip of `block` rows, then by column. Entry i holds
    `block` values for the column `indices[i]` of its panel; `pointers[p * strips + s]` is the first entry of
    (panel p, strip s). `bitmap` and `csr16` have one panel and strips of one row; `bitmap` marks its columns in
    `bits` instead of `indices`: bit i of word j is column 64 j + i. `csr_code` lies as csr_panel does; machine code is
    made from it where the weight is first used. `bf16` lies as csr_panel or block does, but for its values, whose order
    `zipped` gives.

    Attributes:
        kind: csr_panel, block, bitmap, csr16, csr_code or bf16.
        rows, columns: of the dense matrix.
        block: rows of a strip.
        panel: columns of a panel.
        pointers: int32 (panels * strips + 1).
        indices: uint16 (entries), column within its panel; empty for a bitmap.
        values: float32 or bfloat16 (entries * block), for a bitmap followed by 16 zeros.
        bits: int64 (rows, ceil(columns / 64)); empty unless kind is bitmap.
    Raises:
        CheckpointError: sizes disagree, or a pointer or an index is out of range.
    """

    kind: str
    rows: int
    columns: int
    block: int
    panel: int
    pointers: Tensor
    indices: Tensor
    values: Tensor
    bits: Tensor

    def __post_init__(self) -> None:
        _check(self)

    @property
    def strips(self) -> int:
        return -(-self.rows // self.block)

    @property
    def panels(self) -> int:
        return max(1, -(-self.columns // self.panel))

    @property
    def entries(self) -> int:
        return int(self.pointers[-1])

    @property
    def density(self) -> float:
        """Stored values by places in the matrix (a block's explicit zeros count as stored)."""
        return self.entries * self.block / max(1, self.rows * self.columns)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.pointers, self.indices, self.values, self.bits))

    def unpack(self) -> Tensor:
        """The dense (rows, columns) matrix, in the dtype of the values."""
        if self.kind == "bitmap":
            dense = torch.zeros(self.rows, self.columns, dtype=self.values.dtype)
            dense[_places(self.bits, self.rows, self.columns)[:, : self.columns]] = self.values[: self.entries]
            return dense
        dense = torch.zeros(self.strips, self.panels * self.panel, self.block, dtype=self.values.dtype)
        counts = self.pointers.diff().long()
        cell = torch.repeat_interleave(torch.arange(len(counts)), counts)
        column = cell // max(1, self.strips) * self.panel + self.indices.long()
        order = zipped(self.pointers, self.block) if self.kind == "bf16" else slice(None)
        dense[cell % max(1, self.strips), column] = self.values[order].view(-1, self.block)
        return dense.transpose(1, 2).flatten(0, 1)[: self.rows, : self.columns].contiguous()

    def to_buffer(self) -> Tensor:
        """One flat uint8 tensor: a header of 64 bytes, then the tensors, each aligned to 64 bytes."""
        sizes = (self.rows, self.columns, self.entries, self.block, self.panel)
        tensors = (self.pointers, self.indices, self.values, self.bits)
        return buffers.join(_KINDS.index(self.kind), VALUES.index(self.values.dtype), sizes, tensors)

    @classmethod
    def from_buffer(cls, buffer: Tensor) -> PackedWeight:
        """What `to_buffer` wrote, from a flat uint8 tensor of any origin.

        Raises:
            CheckpointError: truncated, altered, of another version, or not made by `to_buffer`.
        """
        kind, dtype, (rows, columns, entries, block, panel) = buffers.head_of(buffer)
        if kind >= len(_KINDS) or dtype >= len(VALUES):
            raise CheckpointError("the header of a packed weight is altered")
        name = _KINDS[kind]
        layout = _layout(name, VALUES[dtype], entries, block, _sizes(name, rows, columns, block, panel))
        return cls(name, rows, columns, block, panel, *buffers.split(buffer, list(layout.values())))


def zipped(pointers: Tensor, block: int) -> Tensor:
    """(entries, block): where the values of a bf16 weight lie.

    Of every two entries of a cell (panel, strip) the values of a row lie side by side, as the instruction wants them; a
    last entry without a partner lies as in the other formats.
    """
    counts = pointers.diff().long()
    first = torch.repeat_interleave(pointers[:-1].long(), counts)
    rank, row = torch.arange(len(first)) - first, torch.arange(block)
    pair = rank // 2 * 2
    has_partner = (pair + 1 < torch.repeat_interleave(counts, counts))[:, None]
    inside = torch.where(has_partner, 2 * row + (rank % 2)[:, None], row)
    return (first + pair)[:, None] * block + inside


def dense_operands(weight: PackedWeight, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the references multiply: the dense float32 weight, and x, rounded where the weight is of kind bf16."""
    dense = weight.unpack().float().to(x.device)
    return dense, x.bfloat16().float() if weight.kind == "bf16" else x


def _places(bits: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, 64 * words) bools."""
    return (bits.reshape(rows, -(-columns // 64), 1) >> torch.arange(64) & 1).bool().flatten(1)


# ---- checks: a kernel trusts pointers and indices, so nothing wrong may reach it


def _check(packed: PackedWeight) -> None:
    sizes = _sizes(packed.kind, packed.rows, packed.columns, packed.block, packed.panel)
    if packed.pointers.dtype is not torch.int32 or packed.pointers.numel() != sizes["pointers"]:
        raise CheckpointError(f"this packed weight needs {sizes['pointers']} int32 pointers")
    layout = _layout(packed.kind, packed.values.dtype, packed.entries, packed.block, sizes)
    for name, (dtype, count) in layout.items():
        tensor = getattr(packed, name)
        if tensor.dtype is not dtype or tensor.numel() != count or not tensor.is_contiguous() or not tensor.is_cpu:
            raise CheckpointError(f"this packed weight needs {count} contiguous {dtype} {name} on the CPU")
    allowed = {"bitmap": VALUES, "bf16": (torch.bfloat16,)}.get(packed.kind, (torch.float32,))
    if packed.values.dtype not in allowed:
        raise CheckpointError(f"{packed.kind} cannot hold values of {packed.values.dtype}")
    if not _is_in_range(packed):
        raise CheckpointError("pointers fall or disagree with the entries, or a column is out of range or order")


def _layout(
    kind: str, dtype: torch.dtype, entries: int, block: int, sizes: dict[str, int]
) -> dict[str, tuple[torch.dtype, int]]:
    """Dtype and number of elements of each tensor."""
    is_bitmap = kind == "bitmap"
    return {
        "pointers": (torch.int32, sizes["pointers"]),
        "indices": (torch.uint16, 0 if is_bitmap else entries),
        "values": (dtype, entries * block + (BEYOND if is_bitmap else 0)),
        "bits": (torch.int64, sizes["bits"]),
    }


def _sizes(kind: str, rows: int, columns: int, block: int, panel: int) -> dict[str, int]:
    """Elements of the tensors whose length follows from the shape."""
    blocks = {"block": BLOCKS, "bf16": (1, *BLOCKS)}.get(kind, (1,))
    if kind not in _KINDS or block not in blocks or rows < 0 or columns < 0 or panel < 1:
        raise CheckpointError(f"no packed weight of kind {kind!r}, shape ({rows}, {columns}), {block} x 1 blocks")
    is_whole = panel == max(1, columns)
    if (kind != "bitmap" and panel > MOST_COLUMNS) or (kind in ("bitmap", "csr16") and not is_whole):
        raise CheckpointError(f"{kind} with {columns} columns cannot have panels of {panel}")
    cells = max(1, -(-columns // panel)) * -(-rows // block)
    words = rows * -(-columns // 64) if kind == "bitmap" else 0
    if max(rows, columns, cells, words) > MOST_ENTRIES:
        raise CheckpointError(f"a weight of shape ({rows}, {columns}) is too large")
    return {"pointers": cells + 1, "bits": words}


def _is_in_range(packed: PackedWeight) -> bool:
    extension = native.extension()
    if extension is not None:
        return bool(matrix(extension, packed).is_valid(packed.entries))
    counts = packed.pointers.diff()
    if int(packed.pointers[0]) != 0 or bool((counts < 0).any()):
        return False
    if packed.kind == "bitmap":
        mask = _places(packed.bits, packed.rows, packed.columns)
        return torch.equal(mask.sum(1), counts.long()) and not bool(mask[:, packed.columns :].any())
    cell = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    column = cell // max(1, packed.strips) * packed.panel + packed.indices.long()
    rises = column.diff() > 0
    is_same_cell = cell.diff() == 0
    in_panel = packed.indices.long() < packed.panel
    return bool((column < packed.columns).all() and in_panel.all() and (rises | ~is_same_cell).all())


def matrix(extension: Any, packed: PackedWeight) -> Any:
    """The native view of a packed weight, which must outlive it."""
    pointers, values = packed.pointers.data_ptr(), packed.values.data_ptr()
    if packed.kind in MANY_COLUMNS:
        shape = (packed.rows, packed.columns, packed.block, packed.panel)
        view = extension.BlockMatrix(*shape, pointers, packed.indices.data_ptr(), values, packed.kind == "bf16")
        code = machine_code(extension, packed, view) if packed.kind == "csr_code" else None
        if code is not None:
            view.use(code)
        return view
    columns = packed.indices.data_ptr() if packed.kind == "csr16" else 0
    return extension.RowMatrix(packed.rows, packed.columns, pointers, values, columns, packed.bits.data_ptr())


def machine_code(extension: Any, packed: PackedWeight, view: Any) -> Any:
    """What runs a csr_code weight, made once; None where there can be none."""
    if packed not in _codes:
        _codes[packed] = extension.encode(view, MOST_CODE)
    return _codes[packed]


_codes: WeakKeyDictionary[PackedWeight, Any] = WeakKeyDictionary()
