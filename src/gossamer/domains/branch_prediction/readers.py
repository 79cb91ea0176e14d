"""Reading and writing traces: text, CBP-4 binary, CBP-5 (BT9), ChampSim, and arrays; each plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, unknown
from ...runs.files import atomic
from .formats import read_bt9, read_cbp4, read_champsim
from .trace import Trace

_PACKED: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"BZh": ("bzip2", bz2.decompress),
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}


def read(path: str | Path, kind: str | None = None) -> Trace:
    """Read a trace.

    Args:
        path: the file. Compression (bzip2, gzip, xz) is recognised by the file's first bytes.
        kind: one of `KINDS`; None goes by the name: `*.npz`, `*.cbp4*`, `*.bt9*`, `*.champsim*`, and the names of
            published sets (`*champsimtrace*`); anything else is text.
    Raises:
        DataError: no such file, truncated or damaged content, an empty trace; for text with the line's number.
        ConfigError: an unknown kind.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise unknown("kind of trace", kind, KINDS)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read trace {path}: {error.strerror or error}") from error
    return KINDS[kind or _kind(path)](_unpack(data, path), path.name)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".npz"):
        return "npz"
    return next((kind for kind in ("cbp4", "bt9", "champsim") if f".{kind}" in name), "text")


def _unpack(data: bytes, path: Path) -> bytes:
    for start, (name, unpack) in _PACKED.items():
        if data.startswith(start):
            try:
                return unpack(data)
            except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
                raise DataError(f"{path}: truncated or damaged {name} file ({error}); fetch it again") from error
    return data


def read_text(data: bytes, name: str) -> Trace:
    """One branch per line: hexadecimal address (with or without 0x) and outcome, 0 or 1.

    Empty lines and lines that begin with # are skipped.
    """
    pcs: list[int] = []
    outcomes = bytearray()
    known: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        fields = line.split()
        if not fields or fields[0].startswith(b"#"):
            continue
        if len(fields) != 2:
            raise DataError(f"{name}, line {number}: needs an address and an outcome, got {_shown(line)}")
        pc = known.get(fields[0])
        if pc is None:
            pc = known[fields[0]] = _address(fields[0], name, number)
        if fields[1] not in (b"0", b"1"):
            raise DataError(f"{name}, line {number}: outcome must be 0 or 1, got {_shown(fields[1])}")
        pcs.append(pc)
        outcomes.append(fields[1] == b"1")
    return Trace(np.array(pcs, np.uint64), np.frombuffer(bytes(outcomes), np.uint8), None, name)


def _address(field: bytes, name: str, number: int) -> int:
    try:
        pc = int(field, 16)
    except ValueError:
        pc = -1
    if not 0 <= pc < 1 << 64 or b"_" in field:
        raise DataError(f"{name}, line {number}: address must be hexadecimal, below 2^64, got {_shown(field)}")
    return pc


def _shown(text: bytes) -> str:
    return repr(text[:60].decode("utf-8", "replace"))


def read_npz(data: bytes, name: str) -> Trace:
    """Arrays `pc` and `taken` and, where known, `instructions`."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            pc, taken = arrays["pc"], arrays["taken"]
            instructions = int(arrays["instructions"]) if "instructions" in arrays else None
    except (ValueError, OSError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: no trace in npz form ({error}); needs arrays pc and taken") from error
    for label, array in (("pc", pc), ("taken", taken)):
        if array.dtype.kind not in "ui" or array.ndim != 1:
            raise DataError(f"{name}: {label} must be a list of whole numbers, got {array.dtype}, {array.shape}")
    return Trace(pc, taken, instructions, name)


KINDS: dict[str, Callable[[bytes, str], Trace]] = {
    "text": read_text,
    "npz": read_npz,
    "cbp4": read_cbp4,
    "bt9": read_bt9,
    "champsim": read_champsim,
}


def write(trace: Trace, path: str | Path) -> Path:
    """Write a trace as text (compressed by the ending .bz2, .gz or .xz) or as .npz; whole or not at all.

    Text does not keep the number of instructions; .npz does.
    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    with atomic(path) as temporary:
        if path.suffix == ".npz":
            extra = {} if trace.instructions is None else {"instructions": np.int64(trace.instructions)}
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, pc=trace.pc, taken=trace.taken, **extra)  # type: ignore[arg-type]
        else:
            packers: dict[str, Callable[[bytes], bytes]] = {
                ".bz2": bz2.compress,
                ".gz": lambda data: gzip.compress(data, mtime=0),
                ".xz": lzma.compress,
            }
            temporary.write_bytes(packers.get(path.suffix, bytes)(_lines(trace.pc, trace.taken)))
    return path


def _lines(pc: NDArray[np.uint64], taken: NDArray[np.uint8]) -> bytes:
    pcs, which = np.unique(pc, return_inverse=True)
    both = [f"{value:#x} {outcome}\n".encode() for value in pcs.tolist() for outcome in (0, 1)]
    return b"".join(both[i] for i in (2 * which + taken).tolist())
