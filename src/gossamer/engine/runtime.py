"""Run a plan: needs numpy and the extension, not torch.

from gossamer.engine.runtime import Plan
plan = Plan.load("network.plan")
y = plan(x)  # numpy in, numpy out
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.engine import planfile
from gossamer.engine.report import PlanReport
from gossamer.errors import CheckpointError, ConfigError, GossamerError, ShapeError, unknown

STEP_WIDTH = 19  # int64 numbers of a step: struct Step in csrc/engine/program.hpp
CACHE_FLOATS = 1 << 18  # of the arena: as many images at a time as a second-level cache holds
MOST_AT_A_TIME = 64


def extension() -> Any:
    """The compiled kernels.

    Raises:
        GossamerError: this installation has none.
    """
    try:
        from gossamer import _native
    except ImportError as error:
        raise GossamerError(f"plans need gossamer's compiled kernels, which are missing: {error}") from error
    wanted = os.environ.get("GOSSAMER_CPU")
    if wanted and wanted != "none" and "gossamer.kernels.native" not in sys.modules:  # which does it where torch is
        if wanted not in _native.levels():
            raise unknown("processor level (GOSSAMER_CPU)", wanted, _native.levels())
        _native.set_level(wanted)
    return _native


@dataclass(frozen=True)
class Tables:
    """A network's steps as numbers; see csrc/engine/program.hpp for the columns.

    Attributes:
        steps: int64 (steps, STEP_WIDTH). values: int64 (values, 2). arrays: int64 (arrays, 3).
        matrices: int64 (matrices, 9). constants: uint8, aligned to 64 bytes.
        arena: floats for one image.
    """

    steps: np.ndarray
    values: np.ndarray
    arrays: np.ndarray
    matrices: np.ndarray
    constants: np.ndarray
    arena: int


def aligned(count: int, dtype: Any = np.float32) -> np.ndarray:
    """An uninitialised array that begins at a multiple of 64 bytes."""
    size = np.dtype(dtype).itemsize
    raw = np.empty(count * size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * size].view(dtype)


class Machine:
    """A checked native program with its tables.

    Raises:
        CheckpointError: a table points outside of something.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        parts = [
            np.ascontiguousarray(t, np.int64) for t in (tables.steps, tables.values, tables.arrays, tables.matrices)
        ]
        for part, width in zip(parts, (STEP_WIDTH, 2, 3, 9), strict=True):
            if part.ndim != 2 or part.shape[1] != width:
                raise CheckpointError(f"a table of the plan has shape {part.shape}, expected (n, {width})")
        pointers = [n for part in parts for n in (part.ctypes.data, len(part))]
        try:
            constants = tables.constants
            self.native = extension().Program(*pointers, constants.ctypes.data, constants.nbytes, tables.arena)
        except ValueError as error:
            raise CheckpointError(f"the plan is damaged: {error}") from error
        self.images = max(1, min(MOST_AT_A_TIME, CACHE_FLOATS // max(1, tables.arena)))
        self._memory = threading.local()

    def arena(self, images: int) -> np.ndarray:
        """This thread's arena, for `images` at a time."""
        needed = self.tables.arena * images
        found: np.ndarray | None = getattr(self._memory, "arena", None)
        if found is None or found.size < needed:
            self._memory.arena = found = aligned(max(16, needed))
            self._memory.arena_at = found.ctypes.data
        return found

    def run_ends(
        self, ends: tuple[tuple[int, int], ...], images: int, threads: int, nanoseconds: np.ndarray | None = None
    ) -> None:
        """All steps; `ends` are (value, address) of what lies outside of the arena."""
        memory = self._memory
        if not hasattr(memory, "addresses"):
            memory.addresses = np.zeros(len(self.tables.values), np.uint64)
            memory.addresses_at = memory.addresses.ctypes.data  # asking again costs as much as a small layer
        for value, address in ends:
            memory.addresses[value] = address
        chunk = min(images, self.images) or 1
        self.arena(chunk)
        clock = 0 if nanoseconds is None else nanoseconds.ctypes.data
        steps = len(self.tables.steps)
        self.native.run(0, steps, images, chunk, memory.addresses_at, memory.arena_at, threads, clock)

    def run(
        self,
        addresses: np.ndarray,
        images: int,
        threads: int,
        *,
        steps: tuple[int, int],
        nanoseconds: np.ndarray | None = None,
    ) -> None:
        """Steps [begin, end), all images together. `addresses` (uint64): of values outside of the arena."""
        (begin, end), chunk = steps, max(1, images)
        clock = 0 if nanoseconds is None else nanoseconds.ctypes.data
        arena = self.arena(chunk)
        self.native.run(begin, end, images, chunk, addresses.ctypes.data, arena.ctypes.data, threads, clock)


class Plan:
    """A network ready to run. Made by `gossamer.compile` or `Plan.load`; may be called from several threads.

    Attributes:
        input_shape, output_shape: of one image.
        threads: fixed number, or None: GOSSAMER_THREADS, else 1.
    """

    def __init__(
        self,
        machine: Machine,
        source: int,
        result: int,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        report: PlanReport,
        threads: int | None = None,
    ) -> None:
        self._machine, self._source, self._result = machine, source, result
        self.input_shape, self.output_shape = input_shape, output_shape
        self._report = report
        self.threads = checked_threads(threads)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The network's output for float32 images (batch, *input_shape), any batch.

        Raises:
            ShapeError: another shape. ConfigError: another dtype.
        """
        if not isinstance(x, np.ndarray):
            raise ConfigError(f"this plan takes a numpy array, got {type(x).__name__}")
        check_input(tuple(x.shape), str(x.dtype), self.input_shape)
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), *self.output_shape), np.float32)
        self.run_at(x.ctypes.data, y.ctypes.data, len(x))
        return y

    def run_at(self, x: int, y: int, images: int, nanoseconds: np.ndarray | None = None) -> None:
        """Run on contiguous float32 memory at these addresses."""
        self._machine.run_ends(((self._source, x), (self._result, y)), images, self._thread_count(), nanoseconds)

    def _thread_count(self) -> int:
        return self.threads or _threads_of_environment()

    @property
    def steps(self) -> int:
        """Number of native steps."""
        return len(self._machine.tables.steps)

    def report(self) -> PlanReport:
        """Which layer runs how, how fast, and why not sparse."""
        return self._report

    def save(self, path: str | Path) -> None:
        """Write one flat file that `Plan.load` runs without torch, on the same processor level."""
        header = {
            "level": str(extension().level()),
            "source": self._source,
            "result": self._result,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "arena": self._machine.tables.arena,
            "report": self._report.to_json(),
        }
        tables = self._machine.tables
        parts = {name: getattr(tables, name) for name in planfile.TABLES}
        planfile.write(Path(path), header, parts, tables.constants)

    @classmethod
    def load(cls, path: str | Path, threads: int | None = None) -> Plan:
        """What `save` wrote.

        Raises:
            CheckpointError: no such file, truncated, altered, of a newer format, or for another processor level.
        """
        header, parts, constants = planfile.read(Path(path))
        level = str(extension().level())
        if header.get("level") != level:
            raise CheckpointError(
                f"{path} was compiled for the processor level {header.get('level')!r}, this is {level!r}: "
                "compile the model again here, or set GOSSAMER_CPU"
            )
        try:
            memory = aligned(len(constants), np.uint8)
            memory[:] = constants
            machine = Machine(Tables(**parts, constants=memory, arena=int(header["arena"])))
            shapes = [tuple(int(n) for n in header[key]) for key in ("input_shape", "output_shape")]
            report = PlanReport.from_json(header["report"])
            source, result = int(header["source"]), int(header["result"])
        except (KeyError, TypeError, ValueError, MemoryError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the header of {path} is damaged: {error}") from error
        _check_ends(machine.tables, source, result, shapes)
        return Plan(machine, source, result, shapes[0], shapes[1], report, threads)


def _check_ends(tables: Tables, source: int, result: int, shapes: list[tuple[int, ...]]) -> None:
    """Only the input and the output lie outside of the arena, and they have the sizes that the file says."""
    outside = {int(v) for v in np.nonzero(tables.values[:, 0] < 0)[0]}
    if source == result or outside != {source, result}:
        raise CheckpointError("the plan is damaged: it uses memory other than its input, output and arena")
    for value, shape in zip((source, result), shapes, strict=True):
        if any(n < 1 for n in shape) or int(np.prod(shape, dtype=object)) != int(tables.values[value, 1]):
            raise CheckpointError(f"the plan is damaged: shape {shape} disagrees with its steps")


def check_input(shape: tuple[int, ...], dtype: str, wanted: tuple[int, ...]) -> None:
    """Raises ShapeError or ConfigError unless this is a batch of float32 images of shape `wanted`."""
    if dtype.removeprefix("torch.") != "float32":
        raise ConfigError(f"a plan computes in float32, the input is {dtype}; convert it")
    if shape[1:] != wanted or not shape:
        raise ShapeError(
            f"the input has shape {shape}, the plan was compiled for (batch, {', '.join(map(str, wanted))}); "
            "compile again with an example of the new shape"
        )


def _threads_of_environment() -> int:
    """GOSSAMER_THREADS, or 1. Raises ConfigError unless it is a positive number."""
    given = os.environ.get("GOSSAMER_THREADS") or "1"
    if not given.isdecimal() or not int(given):
        raise ConfigError(f"GOSSAMER_THREADS must be a number of at least 1, got {given!r}")
    return int(given)


def checked_threads(threads: int | None) -> int | None:
    """Raises ConfigError unless None or at least 1."""
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads must be at least 1, or None; got {threads}")
    return threads
