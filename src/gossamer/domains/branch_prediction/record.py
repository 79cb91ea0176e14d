"""Recording the branches of a real C program that gcc has compiled with a call in every basic block."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DataError
from .trace import Trace

_VARIABLES = ("GOSSAMER_BLOCKS", "GOSSAMER_BLOCKS_LIMIT")


def record(
    sources: Sequence[str | Path],
    arguments: Sequence[str] = (),
    *,
    flags: Sequence[str] = ("-O1",),
    compiler: str = "gcc",
    stdin: bytes = b"",
    limit: int = 50_000_000,
    timeout: float = 300.0,
) -> Trace:
    """Compile a C program, run it, and derive its conditional branches.

    Args:
        sources: C files that make one program. arguments, stdin: what it is run with.
        flags: for the compiler, such as -O2, -Iinclude, -lm.
        limit: basic blocks to record at most; the program still runs to its end.
        timeout: seconds after which it is stopped; what it recorded until then counts.
    Returns:
        a trace in which an address is that of a basic block's call, relative to the program's own addresses.
    Raises:
        ConfigError: no sources, or a limit below 1. DataError: no such compiler or file, a compilation that fails
        (with the compiler's message), no block or no branch recorded.
    Only the main thread is recorded. Children that the program starts with fork are not supported.
    """
    if not sources or limit < 1:
        raise ConfigError(f"needs a source file and a limit of at least 1 block, got {len(sources)} and {limit}")
    if shutil.which(compiler) is None:
        raise DataError(f"no compiler {compiler!r}: install gcc, or name another with its -fsanitize-coverage=trace-pc")
    for source in sources:
        if not Path(source).is_file():
            raise DataError(f"no source file {source}")
    with tempfile.TemporaryDirectory(prefix="gossamer-") as folder:
        program = _compile([Path(s).resolve() for s in sources], Path(folder), compiler, flags)
        blocks = _run(program, arguments, Path(folder) / "blocks.bin", stdin, limit, timeout)
    return branches(blocks, Path(sources[0]).name)


def _compile(sources: list[Path], folder: Path, compiler: str, flags: Sequence[str]) -> Path:
    program, watcher = folder / "program", folder / "watch.o"
    here = files("gossamer.domains.branch_prediction") / "watch.c"
    with as_file(here) as watch:
        _call([compiler, "-O2", "-c", str(watch), "-o", str(watcher)])
    # a fixed load address, so that two recordings agree
    cover = ["-g0", "-fno-pie", "-no-pie", "-fsanitize-coverage=trace-pc"]
    _call([compiler, *cover, *map(str, sources), str(watcher), *flags, "-o", str(program)])
    return program


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"{command[0]} failed with {done.returncode}:\n{done.stderr.strip()[:4000]}")


def _run(
    program: Path, arguments: Sequence[str], out: Path, stdin: bytes, limit: int, timeout: float
) -> NDArray[np.uint64]:
    environment = {**os.environ, _VARIABLES[0]: str(out), _VARIABLES[1]: str(limit)}
    process = subprocess.Popen(
        [str(program), *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.communicate(stdin, timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # the watcher writes what it holds, then ends
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    data = out.read_bytes() if out.exists() else b""
    if len(data) < 16:
        raise DataError(f"{program.name} recorded no blocks (exit code {process.returncode}); does it run by itself?")
    return np.frombuffer(data[: len(data) // 8 * 8], np.uint64)


def branches(blocks: NDArray[np.uint64], name: str = "recorded") -> Trace:
    """The conditional branches behind a sequence of basic blocks.

    A block with exactly two different successors in the recording is a conditional branch; it is taken where the
    successor is not the nearest higher of the two (that one is fallen through to). Blocks that end in a return or an
    indirect jump and that happened to have two successors count as well: they cannot be told apart.

    Raises:
        DataError: there is none.
    Source: section 7, data B, of the specification.
    """
    here, after = blocks[:-1], blocks[1:]
    order, which = np.unique(here, return_inverse=True)
    pairs = np.unique(np.stack([which.astype(np.uint64), after], 1), axis=0)
    source, counts = np.unique(pairs[:, 0], return_counts=True)
    through = np.zeros(len(order), np.uint64)
    conditional = np.zeros(len(order), bool)
    two = source[counts == 2].astype(np.int64)
    ends = pairs[np.isin(pairs[:, 0], two.astype(np.uint64)), 1].reshape(-1, 2)  # rising, as np.unique sorts
    conditional[two] = True
    above = ends > order[two, None]
    through[two] = np.where(above[:, 0], ends[:, 0], np.where(above[:, 1], ends[:, 1], ends[:, 0]))
    chosen = conditional[which]
    if not chosen.any():
        raise DataError(f"{name}: no conditional branch: none of {len(order)} blocks has exactly two successors")
    taken = after[chosen] != through[which[chosen]]
    return Trace(here[chosen], taken.astype(np.uint8), None, name)
