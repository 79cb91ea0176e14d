"""The plan file: magic, version, lengths, JSON header, tables of int64, constants, each under a checksum.

8 bytes  "GOSSPLAN"        8 bytes  version, little-endian
8 bytes  length of header  8 bytes  length of the rest
32 bytes SHA-256 of the header      32 bytes SHA-256 of the rest
header, padded with spaces to 64 bytes; tables and constants, each padded with zeros to 64 bytes
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.errors import CheckpointError

MAGIC, VERSION = b"GOSSPLAN", 1
TABLES = ("steps", "values", "arrays", "matrices")
_PREFIX = struct.Struct("<8sQQQ32s32s")
_LINE = 64


def write(path: Path, header: dict[str, Any], tables: dict[str, np.ndarray], constants: np.ndarray) -> None:
    """Write a plan atomically."""
    header = header | {"tables": {name: list(tables[name].shape) for name in TABLES}, "constants": len(constants)}
    head = _padded(json.dumps(header).encode(), b" ")
    parts = [_padded(np.ascontiguousarray(tables[name], "<i8").tobytes(), b"\0") for name in TABLES]
    body = b"".join([*parts, _padded(constants.tobytes(), b"\0")])
    digests = (hashlib.sha256(head).digest(), hashlib.sha256(body).digest())
    prefix = _PREFIX.pack(MAGIC, VERSION, len(head), len(body), *digests)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(prefix + head + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Header, tables and constants of a plan file.

    Raises:
        CheckpointError: missing, truncated, altered, no plan, or of a newer version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the plan {path}: {error}") from error
    if len(data) < _PREFIX.size or data[:8] != MAGIC:
        raise CheckpointError(f"{path} is no plan file, or is truncated")
    _, version, head, body, head_digest, body_digest = _PREFIX.unpack_from(data)
    if version != VERSION:
        newer = "newer than" if version > VERSION else "another version than"
        raise CheckpointError(f"{path} has format version {version}, {newer} {VERSION}, which this gossamer reads")
    if len(data) != _PREFIX.size + head + body:
        raise CheckpointError(f"{path} is truncated: {len(data)} bytes of {_PREFIX.size + head + body}")
    split = _PREFIX.size + head
    header_bytes, rest = data[_PREFIX.size : split], data[split:]
    if hashlib.sha256(header_bytes).digest() != head_digest or hashlib.sha256(rest).digest() != body_digest:
        raise CheckpointError(f"{path} is altered: its checksum differs")
    return _parse(path, header_bytes, rest)


def _parse(path: Path, header_bytes: bytes, rest: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    try:
        header = json.loads(header_bytes)
        tables, start = {}, 0
        for name in TABLES:
            rows, columns = (int(n) for n in header["tables"][name])
            if rows < 0 or columns < 0 or rows * columns * 8 > len(rest):
                raise ValueError(f"table {name} of {rows} x {columns}")
            part = np.frombuffer(rest, "<i8", rows * columns, start)
            tables[name] = part.reshape(rows, columns).astype(np.int64)
            start += _up(rows * columns * 8)
        count = int(header["constants"])
        if count < 0 or start + _up(count) != len(rest):
            raise ValueError("its parts do not fill it")
        constants = np.frombuffer(rest, np.uint8, count, start)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}") from error
    return header, tables, constants


def _up(length: int) -> int:
    return -(-length // _LINE) * _LINE


def _padded(data: bytes, fill: bytes) -> bytes:
    return data.ljust(_up(len(data)), fill)
