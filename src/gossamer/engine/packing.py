"""Candidates for a layer: its weight in each format that may pay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gossamer.engine.graph import Node
from gossamer.kernels import native
from gossamer.kernels.formats import MOST_CODE, PackedWeight
from gossamer.kernels.pack import pack_bf16, pack_bitmap, pack_block, pack_csr16, pack_csr_code, pack_csr_panel

DENSE = "dense"  # blocks of 8 with explicit zeros: the engine's own dense kernel
TORCH = "torch"
DENSE_BF16 = "bf16 dense"  # blocks of 4, likewise
BF16 = ("bf16", "bf16 block 4", DENSE_BF16)  # where products may round to it
BITMAP_BF16 = "bitmap bf16"
CODE = "csr_code"  # machine code for the pattern: 1 x 1 convolutions and products with many vectors
FEW_VECTORS = 8  # kFewVectors in csrc/engine/program.cpp
MOST_CSR_DENSITY = 0.9  # above it an index for each weight never pays
MOST_BLOCK_DENSITY = 0.97
_CODE_DENSITY = (0.05, 0.7)  # outside, it never measured faster
_TINY = 1e-38


def pack_dense(weight: Tensor, pack: Callable[[Tensor], PackedWeight] = pack_block) -> PackedWeight:
    """All blocks of 8, or of what `pack` packs, whatever is in them."""
    packed = pack(torch.where(weight == 0, _TINY, weight))
    packed.values[packed.values == torch.tensor(_TINY, dtype=packed.values.dtype)] = 0
    return packed


FORMATS: dict[str, Callable[[Tensor], PackedWeight]] = {
    DENSE: pack_dense,
    "csr_panel": pack_csr_panel,
    CODE: pack_csr_code,
    "block 4": lambda weight: pack_block(weight, 4),
    "block 8": lambda weight: pack_block(weight, 8),
    "block 16": lambda weight: pack_block(weight, 16),
    "bf16": pack_bf16,
    "bf16 block 4": lambda weight: pack_bf16(weight, 4),
    DENSE_BF16: lambda weight: pack_dense(weight, partial(pack_bf16, block=4)),
}
ROW_FORMATS: dict[str, Callable[[Tensor], PackedWeight]] = {
    "bitmap": pack_bitmap,
    "csr16": pack_csr16,
    BITMAP_BF16: partial(pack_bitmap, dtype=torch.bfloat16),
}


def density(node: Node) -> float | None:
    """Kept fraction of the weights."""
    if node.weight is None or node.op not in ("conv", "linear", "depthwise"):
        return None
    return int(torch.count_nonzero(node.weight)) / max(1, node.weight.numel())


def candidates(node: Node) -> list[str]:
    """Formats worth measuring for a convolution or a fully connected layer with many vectors."""
    kept = density(node) or 0.0
    found = [DENSE]
    if kept < MOST_BLOCK_DENSITY:
        found += ["block 4", "block 8", "block 16"]
    if kept <= MOST_CSR_DENSITY:
        found.append("csr_panel")
    if _has_code(node, kept):
        found.append(CODE)
    if node.rounds and not node.selects:
        found += [kind for kind in BF16 if kind == DENSE_BF16 or kept <= MOST_CSR_DENSITY]
    return found


def has_bf16() -> bool:
    """Whether this processor, at the present level, multiplies bfloat16 by instructions of its own."""
    return native.level() == "avx512" and "avx512bf16" in native.info()["features"]


def _has_code(node: Node, kept: float) -> bool:
    """Whether machine code exists for a layer of this kind, here, and is not too long."""
    assert node.weight is not None
    is_pointwise = node.op == "linear" or node.shape[3:9] == (1, 1, 1, 1, 0, 0)
    least, most = _CODE_DENSITY
    fits = 7 * kept * node.weight.numel() <= MOST_CODE
    return is_pointwise and least <= kept <= most and fits and native.level() == "avx512"


def row_candidates(node: Node) -> list[str]:
    """Formats worth measuring for a fully connected layer with few vectors."""
    assert node.weight is not None
    if node.op != "linear" or node.shape[0] >= FEW_VECTORS:
        return []
    has_index = (density(node) or 0) < 0.4 and node.weight.shape[1] <= 1 << 16
    return ["bitmap", *(["csr16"] if has_index else []), *([BITMAP_BF16] if node.rounds else [])]


class Packer:
    """Packs each weight once for each format."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, str], PackedWeight] = {}

    def __call__(self, node: Node, kind: str) -> PackedWeight:
        key = (id(node), kind)
        if key not in self._done:
            assert node.weight is not None
            make = FORMATS.get(kind) or ROW_FORMATS[kind]
            self._done[key] = make(node.weight)
        return self._done[key]
