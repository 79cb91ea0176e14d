"""Writing files so that a crash leaves the old file or the new one, never a broken one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gossamer.errors import CheckpointError

TEMPORARY = ".tmp"


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, gone at the end unless it was committed.

    Raises:
        CheckpointError: in place of any OSError of the body: a read-only folder, a full disk, ...
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. An earlier file of that name is untouched; "
            "free some space or choose a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Put a written file in the place of `path`.

    The data reach the disk before the rename, and the rename before the return.
    """
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end, unless the body raises."""
    with scratch(path) as temporary:
        yield temporary
        commit(temporary, path)


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Atomically write `text` as UTF-8. Raises CheckpointError as `atomic` does."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Atomically write a JSON file that a person can read."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`."""
    for pattern in (f".*{TEMPORARY}", ".tmp??????"):  # ours, and those of the safetensors writer
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)
