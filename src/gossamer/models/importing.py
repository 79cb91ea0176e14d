"""Weights out of a `.pth` file: in a child process, tensors only, and only when explicitly asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gossamer.errors import CheckpointError, ConfigError

_CHILD = Path(__file__).with_name("_import_child.py")
_SPARE_BYTES = 1 << 30  # memory beside the tensors themselves
_RISK = (
    "A .pth file is a pickle: reading one can run its author's code, and even the tensors-only reader has had such "
    "holes (CVE-2025-32434, CVE-2026-24747). Ask the author for safetensors"
)


def import_pickled_weights(
    path: str | Path,
    target: str | Path,
    *,
    allow_pickle_weights: bool = False,
    timeout_s: float = 120.0,
    memory_bytes: int | None = None,
) -> Path:
    """Converts the state dict of a `.pth` or `.pt` file into the safetensors file `target`.

    The file is never read in this process. A child process with limited memory, time and file size and without
    the right to start others reads tensors only (`weights_only=True`); there is no fall-back to a full unpickling.

    Args:
        path: the file; holds a state dict, or one under "state_dict", "model" or "model_state_dict".
        target: file to write; replaced at once, and only on success.
        allow_pickle_weights: must be True (`--import-pth` on the command line); states that the risk is accepted.
        timeout_s: limit of the child's running time in seconds.
        memory_bytes: limit of the child's additional memory; default: 4 times the file's size plus 1 GiB.
    Returns:
        `target`.
    Raises:
        ConfigError: `allow_pickle_weights` is not set.
        CheckpointError: missing, not a state dict of tensors, refused by the tensors-only reader, or over a limit.
    """
    path, target = Path(path), Path(target)
    if not allow_pickle_weights:
        raise ConfigError(
            f"{path} is not read. {_RISK}, or accept the risk with allow_pickle_weights=True "
            "(--import-pth), which imports tensors in a limited child process"
        )
    if not path.is_file():
        raise CheckpointError(f"cannot import {path}: no such file")
    size = path.stat().st_size
    memory = 4 * size + _SPARE_BYTES if memory_bytes is None else memory_bytes
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        _run_child(path, name, memory, timeout_s, file_bytes=2 * size + (1 << 20))
        _settle(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
    return target


def _run_child(path: Path, target: str, memory: int, timeout_s: float, file_bytes: int) -> None:
    limits = [str(memory), str(max(1, int(timeout_s))), str(file_bytes)]
    command = [sys.executable, "-I", str(_CHILD), str(path.resolve()), target, *limits]
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.defpath, "HOME": str(Path(target).parent)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"importing {path} took longer than {timeout_s} s and was stopped") from error
    if done.returncode:
        reason = done.stderr.strip() or f"the child process ended with code {done.returncode} (a limit?)"
        raise CheckpointError(f"{path} was not imported. {_RISK}. The tensors-only reader said: {reason}")


def _settle(name: str, target: Path) -> None:
    """Flushes the finished file to disk and gives it its name."""
    with open(name, "rb") as written:
        os.fsync(written.fileno())
    os.replace(name, target)
