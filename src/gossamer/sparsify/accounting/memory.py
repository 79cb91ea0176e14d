"""Bytes of weights by storage format, and of optimiser state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import GossamerError, unknown
from ..patterns import NM
from .parameters import Masks, unique_weights

FORMATS = ("dense", "csr", "bitmap", "2:4", "safetensors")
INDEX_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a model in one format.

    Args:
        values, indices: of all parameters and buffers; `indices` also holds bitmaps, metadata and file headers.
        layers: parameter name -> bytes; a tensor that the format does not fit is stored dense.
    """

    format: str
    values: int
    indices: int
    layers: dict[str, int]

    @property
    def total(self) -> int:
        """All bytes."""
        return self.values + self.indices


def _rows(mask: Tensor) -> tuple[int, int]:
    """The mask as a matrix (out, everything else)."""
    return (mask.shape[0], mask[0].numel()) if mask.ndim > 1 and len(mask) else (1, mask.numel())


def _csr(mask: Tensor, item: int) -> tuple[int, int]:
    """Values, then a 4-byte column for each and a 4-byte row pointer for each row and the end."""
    kept = int(mask.sum())
    return kept * item, INDEX_BYTES * (kept + _rows(mask)[0] + 1)


def _bitmap(mask: Tensor, item: int) -> tuple[int, int]:
    """Values, then one bit for each entry, each row of the matrix padded to a byte."""
    rows, cols = _rows(mask)
    return int(mask.sum()) * item, rows * math.ceil(cols / 8)


def _two_four(mask: Tensor, item: int) -> tuple[int, int]:
    """Values, then 2 bits for the place of each. Dense where the mask is not 2:4 along the inputs."""
    try:
        NM(2, 4).check(mask)
    except GossamerError:
        return mask.numel() * item, 0
    kept = mask.numel() // 2
    return kept * item, math.ceil(kept / 4)


_SIZES: dict[str, Callable[[Tensor, int], tuple[int, int]]] = {"csr": _csr, "bitmap": _bitmap, "2:4": _two_four}


def memory(model: nn.Module, masks: Masks | None = None, format: str = "dense") -> Memory:
    """Bytes that parameters and buffers take in a storage format.

    Args:
        masks: which parameters are sparse; None: every parameter of two or more dimensions that has zeros.
        format: "dense"; "csr": 4-byte columns and row pointers; "bitmap": one bit an entry; "2:4": values and 2-bit
            places, dense where the mask is not 2:4; "safetensors": the file of dense tensors with exact zeros,
            header included.
    Raises:
        ConfigError: unknown format.
    """
    if format not in FORMATS:
        raise unknown("storage format", format, FORMATS)
    values = indices = 0
    layers: dict[str, int] = {}
    for name, value, mask in unique_weights(model, masks):
        item = value.element_size()
        sparse = mask
        if masks is None and value.ndim >= 2 and not bool(value.all()):
            sparse = value != 0
        size = (value.numel() * item, 0) if sparse is None or format not in _SIZES else _SIZES[format](sparse, item)
        values, indices, layers[name] = values + size[0], indices + size[1], sum(size)
    buffers = _saved_buffers(model)
    values += sum(b.numel() * b.element_size() for b in buffers.values())
    if format == "safetensors":
        tensors = {name: value for name, value, _ in unique_weights(model)} | buffers
        indices = _header_bytes(tensors)
    return Memory(format, values, indices, layers)


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers of the state dict."""
    saved = set(model.state_dict(keep_vars=True))
    return {name: b for name, b in model.named_buffers() if name in saved}


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _header_bytes(tensors: dict[str, Tensor]) -> int:
    """Length field and JSON header of a safetensors file, padded to eight bytes; widest types come first."""
    entries, at = {}, 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].element_size(), n)):
        size = tensors[name].numel() * tensors[name].element_size()
        kind = _DTYPES.get(tensors[name].dtype, str(tensors[name].dtype))
        entries[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(text) / 8) * 8


def optimizer_bytes(optimizer: torch.optim.Optimizer, masks: Masks | None = None) -> int:
    """Bytes of optimiser state, per-weight buffers counted at the survivors only.

    The entries are taken from the state as it is: one buffer a weight for momentum, two for Adam, none before the
    first step.

    Args:
        masks: parameter name -> mask; needs an optimiser of named parameters. None: all entries.
    Raises:
        ConfigError: masks of an optimiser without names, or of a name that it does not have.
    """
    by_parameter = _masks_of(optimizer, masks or {})
    total = 0
    for parameter, state in optimizer.state.items():
        mask = by_parameter.get(id(parameter))
        for value in state.values():
            if isinstance(value, Tensor):
                sparse = mask is not None and value.shape == parameter.shape
                total += value.element_size() * (int(mask.sum()) if sparse and mask is not None else value.numel())
    return total


def _masks_of(optimizer: torch.optim.Optimizer, masks: Masks) -> dict[int, Tensor]:
    """Parameter identity -> mask."""
    named: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        named.update(zip(group.get("param_names", ()), group["params"], strict=False))
    for name in masks:
        if name not in named:
            raise unknown("parameter of the optimiser (create it with model.named_parameters())", name, named)
    return {id(named[name]): mask for name, mask in masks.items()}
