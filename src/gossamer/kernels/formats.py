"""Sparse weights as flat buffers, in the layouts that the native kernels read.

    >>> weight = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    >>> packed = pack_csr_panel(weight)
    >>> packed.pointers.tolist(), packed.indices.tolist(), packed.values.tolist()
    ([0, 1, 3], [1, 0, 2], [2.0, 1.0, 3.0])
    >>> torch.equal(PackedWeight.from_buffer(packed.to_buffer()).unpack(), weight)
    True

`csr_panel`, `csr_code` and `block` feed products with many columns (`spmm`, `conv2d`, `linear`), `bitmap` and `csr16`
products with a vector (`gemv`).
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError
from gossamer.kernels import native

BLOCKS = (4, 8, 16)
MANY_COLUMNS = ("csr_panel", "csr_code", "block")  # kinds for products with many columns
MOST_CODE = 1 << 22  # bytes of machine code for one weight (kMostCode in csrc/sparse/code.hpp)
_KINDS = ("csr_panel", "block", "bitmap", "csr16", "csr_code")
_VALUES = (torch.float32, torch.bfloat16)
_MOST_ENTRIES = 2**31 - 1
_MOST_COLUMNS = 2**16  # that a 16-bit index reaches
_BEYOND = 16  # values that the bitmap kernels may read past the last (kValuesBeyond in csrc/sparse/gemv.hpp)

_MAGIC, _VERSION, _ALIGN = b"GSPW", 1, 64
# magic, version, kind, dtype, rows, columns, entries, block, panel, checksum of the payload, checksum of all before
_HEADER = struct.Struct("<4sHBBqqqIIII")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A sparse (rows, columns) matrix. Made by the `pack_*` functions or `from_buffer`; checked on construction.

    Entries are ordered by panel of columns, then by strip of `block` rows, then by column. Entry i holds
    `block` values for the column `indices[i]` of its panel; `pointers[p * strips + s]` is the first entry of
    (panel p, strip s). `bitmap` and `csr16` have one panel and strips of one row; `bitmap` marks its columns in
    `bits` instead of `indices`: bit i of word j is column 64 j + i. `csr_code` lies as csr_panel does; machine code is
    made from it where the weight is first used.

    Attributes:
        kind: csr_panel, block, bitmap, csr16 or csr_code.
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
        dense[cell % max(1, self.strips), column] = self.values.view(-1, self.block)
        return dense.transpose(1, 2).flatten(0, 1)[: self.rows, : self.columns].contiguous()

    def to_buffer(self) -> Tensor:
        """One flat uint8 tensor: a header of 64 bytes, then the tensors, each aligned to 64 bytes."""
        payload = b"".join(_padded(t) for t in (self.pointers, self.indices, self.values, self.bits))
        kind, dtype = _KINDS.index(self.kind), _VALUES.index(self.values.dtype)
        fields = (self.rows, self.columns, self.entries, self.block, self.panel, zlib.crc32(payload))
        head = _HEADER.pack(_MAGIC, _VERSION, kind, dtype, *fields, 0)[:-4]
        head += struct.pack("<I", zlib.crc32(head))
        return torch.frombuffer(bytearray(head.ljust(_ALIGN, b"\0") + payload), dtype=torch.uint8)

    @classmethod
    def from_buffer(cls, buffer: Tensor) -> PackedWeight:
        """What `to_buffer` wrote, from a flat uint8 tensor of any origin.

        Raises:
            CheckpointError: truncated, altered, of another version, or not made by `to_buffer`.
        """
        return _read(buffer)


# ---- packing


def pack_csr_panel(weight: Tensor, panel: int | None = None, *, pixels: int | None = None) -> PackedWeight:
    """Unstructured sparsity, by panels of columns that stay in the first-level cache.

    Args:
        weight: (out, in), or (out, in, height, width) taken as (out, in * height * width). Finite.
        panel: columns of a panel; chosen by density and pixels unless given.
        pixels: columns of the dense side that the weight will meet, where known: the best panel depends on it.
    Raises:
        NumericsError: a weight is not finite.
        ConfigError: the panel is not in 1..65536.
        ShapeError: not a matrix or a convolution's weight, or too large.
    """
    weight = matrix_of(weight)
    if panel is None:
        panel = _even_panel(weight.shape[1], _best_panel(weight, pixels))
    return _pack_blocks("csr_panel", weight, 1, panel)


def pack_csr_code(weight: Tensor) -> PackedWeight:
    """Unstructured sparsity, to be turned into machine code for exactly this pattern (csrc/sparse/code.hpp).

    For 1 x 1 convolutions and fully connected layers with many vectors, on x86-64 with AVX-512; anywhere else, where
    the code would exceed `MOST_CODE` bytes (some 7 a non-zero), or where the system allows no new executable memory,
    it computes as csr_panel does. A plan never takes it unless it measured faster.
    """
    weight = matrix_of(weight)
    return _pack_blocks("csr_code", weight, 1, _even_panel(weight.shape[1], _best_panel(weight, None)))


def _best_panel(weight: Tensor, pixels: int | None) -> int:
    """Measured on the layers of MobileNetV1 with 2 MB of second-level cache.

    Partial sums are read and written once for each panel, so panels are longer where a row has few entries; a tile
    of few pixels leaves room for that; an x beyond the second-level cache asks for short ones.
    """
    sparse = int(torch.count_nonzero(weight)) < 0.15 * weight.numel()
    if pixels is None:
        return 128 if sparse else 96
    if pixels <= 64:
        return 256 if sparse else 128
    if pixels * weight.shape[1] >= 2**18 and not sparse:
        return 64
    return 128 if sparse else 96


def pack_block(weight: Tensor, block: int = 8, panel: int | None = None) -> PackedWeight:
    """Blocks of `block` rows x 1 column, kept where any of their weights is not zero.

    The rows of a last short strip are filled up with zeros. A dense weight in blocks of 8 makes a good dense kernel.

    Args:
        weight: as for `pack_csr_panel`.
        block: 4, 8 or 16 rows.
        panel: columns of a panel; 256 by default (measured).
    """
    if block not in BLOCKS:
        raise ConfigError(f"blocks have 4, 8 or 16 rows, got {block}")
    weight = matrix_of(weight)
    return _pack_blocks("block", weight, block, _even_panel(weight.shape[1], 256) if panel is None else panel)


def pack_csr16(weight: Tensor) -> PackedWeight:
    """A 16-bit column for each non-zero, for `gemv` at densities below about 0.15.

    Raises:
        ShapeError: more than 65536 columns.
    """
    weight = matrix_of(weight)
    if weight.shape[1] > _MOST_COLUMNS:
        raise ShapeError(f"csr16 reaches {_MOST_COLUMNS} columns, but the weight has {weight.shape[1]}; use bitmap")
    return _pack_blocks("csr16", weight, 1, max(1, weight.shape[1]))


def pack_bitmap(weight: Tensor, dtype: torch.dtype = torch.float32) -> PackedWeight:
    """One bit for each place and the non-zero values, for `gemv`; in float32 or bfloat16.

    A weight that bfloat16 rounds to zero stays stored.
    """
    if dtype not in _VALUES:
        raise ConfigError(f"a bitmap holds float32 or bfloat16 values, not {dtype}")
    weight = matrix_of(weight)
    rows, columns = weight.shape
    mask = weight != 0
    pointers = _pointers(mask.sum(1))
    values = torch.cat([weight[mask], torch.zeros(_BEYOND)]).to(dtype)
    none = torch.empty(0, dtype=torch.uint16)
    return PackedWeight("bitmap", rows, columns, 1, max(1, columns), pointers, none, values, _bits_of(mask))


def bitmap_of(rows: int, columns: int, pointers: Tensor, bits: Tensor, values: Tensor | None = None) -> PackedWeight:
    """A bitmap of given pointers and bits, checked; `values` (entries,) are ones where only the places matter."""
    entries = int(pointers[-1]) if pointers.dtype is torch.int32 and pointers.numel() else 0
    values = torch.ones(max(0, entries)) if values is None else values
    none = torch.empty(0, dtype=torch.uint16)
    padded = torch.cat([values, torch.zeros(_BEYOND)])
    return PackedWeight("bitmap", rows, columns, 1, max(1, columns), pointers, none, padded, bits)


def matrix_of(weight: Tensor) -> Tensor:
    """A layer's weight as (out, in) float32 on the CPU, checked to be finite."""
    if weight.dim() not in (2, 4):
        raise ShapeError(f"only (out, in) and (out, in, height, width) weights pack, got {tuple(weight.shape)}")
    weight = weight.detach().to("cpu", torch.float32).flatten(1)
    if not torch.isfinite(weight).all():
        raise NumericsError(f"a weight of shape {tuple(weight.shape)} holds NaN or infinity; it cannot be packed")
    return weight


def _even_panel(columns: int, most: int) -> int:
    """Panels of about equal length, none longer than `most`."""
    return max(1, math.ceil(columns / max(1, math.ceil(columns / most))))


def _pack_blocks(kind: str, weight: Tensor, block: int, panel: int) -> PackedWeight:
    if not 1 <= panel <= _MOST_COLUMNS:
        raise ConfigError(f"a panel has 1 to {_MOST_COLUMNS} columns, got {panel}")
    rows, columns = weight.shape
    strips, panels = -(-rows // block), max(1, -(-columns // panel))
    padded = torch.nn.functional.pad(weight, (0, panels * panel - columns, 0, strips * block - rows))
    cells = padded.reshape(strips, block, panels, panel).permute(2, 0, 3, 1)  # (panels, strips, panel, block)
    kept = (cells != 0).any(-1)
    pointers = _pointers(kept.sum(-1).flatten())
    indices = kept.nonzero()[:, 2].to(torch.uint16)
    none = torch.empty(0, dtype=torch.int64)
    return PackedWeight(kind, rows, columns, block, panel, pointers, indices, cells[kept].flatten(), none)


def _pointers(counts: Tensor) -> Tensor:
    ends = counts.cumsum(0)
    if len(ends) and int(ends[-1]) > _MOST_ENTRIES:
        raise ShapeError(f"{int(ends[-1])} non-zeros are more than the {_MOST_ENTRIES} that a packed weight holds")
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(torch.int32)


def _bits_of(mask: Tensor) -> Tensor:
    words = -(-mask.shape[1] // 64)
    padded = torch.nn.functional.pad(mask, (0, words * 64 - mask.shape[1]))
    bits = padded.reshape(mask.shape[0], words, 64).long() << torch.arange(64)
    return bits.sum(-1)


def _places(bits: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, 64 * words) bools."""
    return (bits.reshape(rows, -(-columns // 64), 1) >> torch.arange(64) & 1).bool().flatten(1)


# ---- checks: a kernel trusts pointers and indices, so nothing wrong may reach it


def _check(packed: PackedWeight) -> None:
    sizes = _sizes(packed.kind, packed.rows, packed.columns, packed.block, packed.panel)
    if packed.pointers.dtype is not torch.int32 or packed.pointers.numel() != sizes["pointers"]:
        raise CheckpointError(f"this packed weight needs {sizes['pointers']} int32 pointers")
    entries = packed.entries
    expected: dict[str, tuple[torch.dtype, int]] = {
        "indices": (torch.uint16, 0 if packed.kind == "bitmap" else entries),
        "values": (packed.values.dtype, entries * packed.block + (_BEYOND if packed.kind == "bitmap" else 0)),
        "bits": (torch.int64, sizes["bits"]),
    }
    for name, (dtype, count) in expected.items():
        tensor = getattr(packed, name)
        if tensor.dtype is not dtype or tensor.numel() != count or not tensor.is_contiguous() or not tensor.is_cpu:
            raise CheckpointError(f"this packed weight needs {count} contiguous {dtype} {name} on the CPU")
    if packed.values.dtype not in _VALUES or (packed.kind != "bitmap" and packed.values.dtype is not torch.float32):
        raise CheckpointError(f"{packed.kind} cannot hold values of {packed.values.dtype}")
    if not _is_in_range(packed):
        raise CheckpointError("pointers fall or disagree with the entries, or a column is out of range or order")


def _sizes(kind: str, rows: int, columns: int, block: int, panel: int) -> dict[str, int]:
    """Elements of the tensors whose length follows from the shape."""
    blocks = BLOCKS if kind == "block" else (1,)
    if kind not in _KINDS or block not in blocks or rows < 0 or columns < 0 or panel < 1:
        raise CheckpointError(f"no packed weight of kind {kind!r}, shape ({rows}, {columns}), {block} x 1 blocks")
    is_whole = panel == max(1, columns)
    if (kind != "bitmap" and panel > _MOST_COLUMNS) or (kind in ("bitmap", "csr16") and not is_whole):
        raise CheckpointError(f"{kind} with {columns} columns cannot have panels of {panel}")
    cells = max(1, -(-columns // panel)) * -(-rows // block)
    words = rows * -(-columns // 64) if kind == "bitmap" else 0
    if max(rows, columns, cells, words) > _MOST_ENTRIES:
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
        view = extension.BlockMatrix(*shape, pointers, packed.indices.data_ptr(), values)
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

# ---- buffers


def _padded(tensor: Tensor) -> bytes:
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return data.ljust(-(-len(data) // _ALIGN) * _ALIGN, b"\0")


def _read(buffer: Tensor) -> PackedWeight:
    if buffer.dtype is not torch.uint8 or buffer.dim() != 1:
        raise CheckpointError(f"a packed buffer is flat uint8, got {buffer.dtype} of shape {tuple(buffer.shape)}")
    data = buffer.detach().cpu().contiguous().numpy().tobytes()
    if len(data) < _ALIGN or data[:4] != _MAGIC:
        raise CheckpointError("this is no packed weight: its first bytes are not those of to_buffer()")
    _, version, kind, dtype, rows, columns, entries, block, panel, payload, head = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise CheckpointError(f"packed weight of version {version}; this library reads {_VERSION}: pack it again")
    if zlib.crc32(data[: _HEADER.size - 4]) != head or kind >= len(_KINDS) or dtype >= len(_VALUES) or entries < 0:
        raise CheckpointError("the header of a packed weight is altered")
    sizes = _sizes(_KINDS[kind], rows, columns, block, panel)
    is_bitmap = _KINDS[kind] == "bitmap"
    layout = (
        (torch.int32, sizes["pointers"]),
        (torch.uint16, 0 if is_bitmap else entries),
        (_VALUES[dtype], entries * block + (_BEYOND if is_bitmap else 0)),
        (torch.int64, sizes["bits"]),
    )
    lengths = [-(-count * t.itemsize // _ALIGN) * _ALIGN for t, count in layout]
    if len(data) != _ALIGN + sum(lengths):
        raise CheckpointError(f"a packed weight of {_ALIGN + sum(lengths)} bytes has {len(data)}: truncated or altered")
    if zlib.crc32(data[_ALIGN:]) != payload:
        raise CheckpointError("the data of a packed weight is altered: its checksum differs")
    tensors, start = [], _ALIGN
    for (t, count), length in zip(layout, lengths, strict=True):
        tensors.append(_slice(data, start, t, count))
        start += length
    pointers, indices, values, bits = tensors
    return PackedWeight(_KINDS[kind], rows, columns, block, panel, pointers, indices, values, bits)


def _slice(data: bytes, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data[start : start + count * dtype.itemsize]), dtype=dtype)
