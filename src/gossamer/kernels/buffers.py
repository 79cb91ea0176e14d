"""Tensors in one flat buffer: magic, version, a few numbers, checksums, then each tensor aligned to 64 bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.errors import CheckpointError

_MAGIC, _VERSION, _ALIGN = b"GSPW", 1, 64
# magic, version, kind, dtype, rows, columns, entries, block, panel, checksum of the payload, checksum of all before
_HEADER = struct.Struct("<4sHBBqqqIIII")


def join(kind: int, dtype: int, sizes: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    """A flat uint8 tensor; `sizes` are rows, columns, entries, block and panel."""
    payload = b"".join(_padded(t) for t in tensors)
    head = _HEADER.pack(_MAGIC, _VERSION, kind, dtype, *sizes, zlib.crc32(payload), 0)[:-4]
    head += struct.pack("<I", zlib.crc32(head))
    return torch.frombuffer(bytearray(head.ljust(_ALIGN, b"\0") + payload), dtype=torch.uint8)


def head_of(buffer: Tensor) -> tuple[int, int, list[int]]:
    """Kind, dtype and sizes, as given to `join`.

    Raises:
        CheckpointError: not made by `join`, of another version, or with an altered header.
    """
    if buffer.dtype is not torch.uint8 or buffer.dim() != 1:
        raise CheckpointError(f"a packed buffer is flat uint8, got {buffer.dtype} of shape {tuple(buffer.shape)}")
    data = buffer[:_ALIGN].cpu().numpy().tobytes()
    if len(data) < _ALIGN or data[:4] != _MAGIC:
        raise CheckpointError("this is no packed weight: its first bytes are not those of to_buffer()")
    _, version, kind, dtype, *sizes, _, head = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise CheckpointError(f"packed weight of version {version}; this library reads {_VERSION}: pack it again")
    if zlib.crc32(data[: _HEADER.size - 4]) != head or sizes[2] < 0:
        raise CheckpointError("the header of a packed weight is altered")
    return kind, dtype, sizes


def split(buffer: Tensor, layout: Sequence[tuple[torch.dtype, int]]) -> list[Tensor]:
    """The tensors of a buffer whose header `head_of` has read, by dtype and number of elements.

    Raises:
        CheckpointError: truncated or altered.
    """
    data = buffer.detach().cpu().contiguous().numpy().tobytes()
    lengths = [_up(count * dtype.itemsize) for dtype, count in layout]
    if len(data) != _ALIGN + sum(lengths):
        raise CheckpointError(f"a packed weight of {_ALIGN + sum(lengths)} bytes has {len(data)}: truncated or altered")
    if zlib.crc32(data[_ALIGN:]) != _HEADER.unpack_from(data)[-2]:
        raise CheckpointError("the data of a packed weight is altered: its checksum differs")
    tensors, start = [], _ALIGN
    for (dtype, count), length in zip(layout, lengths, strict=True):
        part = bytearray(data[start : start + count * dtype.itemsize])
        tensors.append(torch.frombuffer(part, dtype=dtype) if count else torch.empty(0, dtype=dtype))
        start += length
    return tensors


def _up(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


def _padded(tensor: Tensor) -> bytes:
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return data.ljust(_up(len(data)), b"\0")
