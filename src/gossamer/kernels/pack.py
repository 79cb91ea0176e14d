"""From dense weights to packed ones, in each format of `formats.py`.

>>> packed = pack_csr_panel(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
>>> packed.pointers.tolist(), packed.indices.tolist(), packed.values.tolist()
([0, 1, 3], [1, 0, 2], [2.0, 1.0, 3.0])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.kernels.formats import BEYOND, BLOCKS, MOST_COLUMNS, MOST_ENTRIES, VALUES, PackedWeight, zipped


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


def pack_bf16(weight: Tensor, block: int = 1, panel: int | None = None) -> PackedWeight:
    """Unstructured sparsity or blocks of rows with bfloat16 values, for products that round x to bfloat16 as well.

    For 1 x 1 and k x k convolutions and fully connected layers with many vectors; sums are float32. Weights that
    bfloat16 rounds to zero stay stored.

    Args:
        weight: as for `pack_csr_panel`.
        block: 1, 4, 8 or 16 rows.
        panel: columns of a panel; as in `pack_csr_panel` and `pack_block` by default.
    """
    if block not in (1, *BLOCKS):
        raise ConfigError(f"blocks have 1, 4, 8 or 16 rows, got {block}")
    weight = matrix_of(weight)
    panel = panel or _even_panel(weight.shape[1], _best_panel(weight, None) if block == 1 else 256)
    packed = _pack_blocks("block" if block > 1 else "csr_panel", weight, block, panel)
    values = torch.empty_like(packed.values, dtype=torch.bfloat16)
    values[zipped(packed.pointers, block)] = packed.values.view(-1, block).bfloat16()
    shape = (packed.rows, packed.columns, block, packed.panel)
    return PackedWeight("bf16", *shape, packed.pointers, packed.indices, values, packed.bits)


def pack_csr16(weight: Tensor) -> PackedWeight:
    """A 16-bit column for each non-zero, for `gemv` at densities below about 0.15.

    Raises:
        ShapeError: more than 65536 columns.
    """
    weight = matrix_of(weight)
    if weight.shape[1] > MOST_COLUMNS:
        raise ShapeError(f"csr16 reaches {MOST_COLUMNS} columns, but the weight has {weight.shape[1]}; use bitmap")
    return _pack_blocks("csr16", weight, 1, max(1, weight.shape[1]))


def pack_bitmap(weight: Tensor, dtype: torch.dtype = torch.float32) -> PackedWeight:
    """One bit for each place and the non-zero values, for `gemv`; in float32 or bfloat16.

    A weight that bfloat16 rounds to zero stays stored.
    """
    if dtype not in VALUES:
        raise ConfigError(f"a bitmap holds float32 or bfloat16 values, not {dtype}")
    weight = matrix_of(weight)
    rows, columns = weight.shape
    mask = weight != 0
    pointers = _pointers(mask.sum(1))
    values = torch.cat([weight[mask], torch.zeros(BEYOND)]).to(dtype)
    none = torch.empty(0, dtype=torch.uint16)
    return PackedWeight("bitmap", rows, columns, 1, max(1, columns), pointers, none, values, _bits_of(mask))


def bitmap_of(rows: int, columns: int, pointers: Tensor, bits: Tensor, values: Tensor | None = None) -> PackedWeight:
    """A bitmap of given pointers and bits, checked; `values` (entries,) are ones where only the places matter."""
    entries = int(pointers[-1]) if pointers.dtype is torch.int32 and pointers.numel() else 0
    values = torch.ones(max(0, entries)) if values is None else values
    none = torch.empty(0, dtype=torch.uint16)
    padded = torch.cat([values, torch.zeros(BEYOND)])
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
    if not 1 <= panel <= MOST_COLUMNS:
        raise ConfigError(f"a panel has 1 to {MOST_COLUMNS} columns, got {panel}")
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
    if len(ends) and int(ends[-1]) > MOST_ENTRIES:
        raise ShapeError(f"{int(ends[-1])} non-zeros are more than the {MOST_ENTRIES} that a packed weight holds")
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(torch.int32)


def _bits_of(mask: Tensor) -> Tensor:
    words = -(-mask.shape[1] // 64)
    padded = torch.nn.functional.pad(mask, (0, words * 64 - mask.shape[1]))
    bits = padded.reshape(mask.shape[0], words, 64).long() << torch.arange(64)
    return bits.sum(-1)
