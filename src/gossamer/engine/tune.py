"""Choose a format for each layer by measurement, inside of the whole network so that caches are in their real state."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gossamer.engine.assemble import Choice, assemble
from gossamer.engine.executor import Clock, Executor
from gossamer.engine.graph import Graph, Node
from gossamer.engine.packing import (
    DENSE,
    FEW_VECTORS,
    ROW_FORMATS,
    TORCH,
    Packer,
    candidates,
    density,
    row_candidates,
)
from gossamer.kernels import native

ROUNDS, SECONDS = 6, 0.15  # of each candidate network: at least, and until
RACE_SECONDS = 0.8
CLOSE, REMATCHES = 1.2, 2  # rivals within this factor of the fastest meet again, so often
TORCH_MARGIN = 0.9  # a layer leaves the native steps for torch only if it then takes less than this share
CACHE_VERSION = 2

Times = dict[str, float]  # candidate -> microseconds


def folder() -> Path:
    """Where measurements are kept: $GOSSAMER_CACHE, else ~/.cache/gossamer."""
    return Path(os.environ.get("GOSSAMER_CACHE") or Path.home() / ".cache" / "gossamer")


def measure(graph: Graph, example: Tensor, threads: int, packer: Packer) -> dict[int, Times]:
    """id of node -> time of each candidate, from the cache where all are known."""
    layers = [node for node in graph.nodes if node.op in ("conv", "linear")]
    cache = _Cache(threads)
    known = {id(node): cache.get(_key(node, len(example))) for node in layers}
    if all(found is not None for found in known.values()):
        return {key: dict(found or {}) for key, found in known.items()}
    times: dict[int, Times] = {id(node): {} for node in layers}
    wanted = {kind for node in layers for kind in _options(node, len(example))}
    for kind in (*sorted(wanted), TORCH):
        chosen = {id(node): _choice(node, kind, len(example)) for node in layers}
        executor = Executor(graph, assemble(graph, chosen, packer))
        best = fastest_steps(executor, example, threads)
        for node in layers:
            if kind == TORCH or kind in _options(node, len(example)):
                times[id(node)][kind] = best[id(node)]
    for node in layers:
        cache.put(_key(node, len(example)), times[id(node)])
    cache.save()
    return times


def choose(node: Node, times: Mapping[str, float], images: int) -> Choice:
    """The fastest candidate; torch only by a margin, as it interrupts the native steps."""
    own = {kind: t for kind, t in times.items() if kind != TORCH}
    best = min(own, key=lambda kind: own[kind])
    if times.get(TORCH, float("inf")) < TORCH_MARGIN * own[best]:
        return Choice(TORCH)
    return _choice(node, best, images)


def best_native(node: Node, times: Mapping[str, float], images: int) -> Choice:
    """The fastest candidate that needs no torch."""
    return choose(node, {kind: t for kind, t in times.items() if kind != TORCH}, images)


def fastest_steps(executor: Executor, example: Tensor, threads: int) -> dict[int, float]:
    """id of node -> least microseconds over several runs."""
    best: dict[int, float] = {}
    end = time.perf_counter() + SECONDS
    rounds = 0
    while rounds < ROUNDS or (time.perf_counter() < end and rounds < 10 * ROUNDS):
        clock = Clock(executor)
        executor(example, threads, clock)
        for key, value in clock.by_node().items():
            best[key] = min(value, best.get(key, float("inf")))
        rounds += 1
    return best


def race(runners: Mapping[str, Callable[[], object]], threads: int, least: int = 5) -> dict[str, float]:
    """Name -> least milliseconds, all runners in turns so that a busy machine treats them alike.

    With one thread it is processor time, which other programs do not lengthen.
    """
    now = time.process_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(runners, float("inf"))
    end = time.perf_counter() + RACE_SECONDS
    rounds = 0
    while rounds < least or (time.perf_counter() < end and rounds < 200):
        for name, run in runners.items():
            run()  # so that the time does not depend on who ran before
            start = now()
            run()
            best[name] = min(best[name], 1e3 * (now() - start))
        rounds += 1
    return best


def settle(runners: Mapping[str, Callable[[], object]], threads: int) -> dict[str, float]:
    """`race`, then again among those that came close, so that a disturbed round does not decide.

    Name -> least milliseconds of all rounds.
    """
    times = race(runners, threads)
    for _ in range(REMATCHES):
        limit = CLOSE * min(times.values())
        close = {name: run for name, run in runners.items() if times[name] <= limit}
        if len(close) == 1:
            break
        times |= {name: min(times[name], ms) for name, ms in race(close, threads).items()}
    return times


def uses_rows(node: Node, images: int) -> bool:
    """A fully connected layer with so few vectors that each is multiplied by itself."""
    return node.op == "linear" and node.shape[0] * images < FEW_VECTORS


def _options(node: Node, images: int) -> list[str]:
    return row_candidates(node) if uses_rows(node, images) else candidates(node)


def _choice(node: Node, kind: str, images: int) -> Choice:
    """`kind` where the layer has it, completed by a guess for the batch sizes that are not measured."""
    if kind == TORCH:
        return Choice(TORCH)
    rows = row_candidates(node)
    sparse = (density(node) or 0) < 0.15
    usual_rows = None if not rows else "csr16" if sparse and "csr16" in rows else "bitmap"
    usual = "block 4" if (density(node) or 0) < 0.5 else DENSE
    if uses_rows(node, images):
        return Choice(usual, kind if kind in ROW_FORMATS and kind in rows else usual_rows)
    return Choice(kind if kind in candidates(node) else DENSE, usual_rows)


def _key(node: Node, images: int) -> str:
    """What decides a layer's time: its shape, what is fused, and how many weights and blocks remain."""
    assert node.weight is not None
    flat = node.weight.flatten(1) != 0
    fill = [int(torch.count_nonzero(flat))]
    for block in (4, 8):
        padded = torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % block))
        fill.append(int(padded.unflatten(0, (-1, block)).any(1).sum()))
    shares = [round(100 * block * n / max(1, flat.numel())) for block, n in zip((1, 4, 8), fill, strict=True)]
    fused = f"{node.activation}{'+' if node.residual is not None else ''}{' bf16' if node.rounds else ''}"
    return f"{node.op} {images}x{node.shape} {tuple(flat.shape)} {fused} {shares}"


class _Cache:
    """Measured times by layer, one file for each machine, level and number of threads."""

    def __init__(self, threads: int) -> None:
        name = f"{_machine()}-{native.level()}-{threads}-{torch.__version__}.json".replace("/", "_").replace(" ", "_")
        self.path = folder() / "engine" / name
        self.times: dict[str, Times] = {}
        try:
            data = json.loads(self.path.read_text())
            if data.get("version") == CACHE_VERSION:
                self.times = {k: {c: float(t) for c, t in v.items()} for k, v in data["times"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # no cache, or a damaged one: measure again

    def get(self, key: str) -> Times | None:
        return self.times.get(key)

    def put(self, key: str, times: Times) -> None:
        self.times[key] = times

    def save(self) -> None:
        """Best effort: a folder that cannot be written costs the next compilation its time, nothing else."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                json.dump({"version": CACHE_VERSION, "times": self.times}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)


def _machine() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    import platform

    return "-".join(filter(None, (named.get("model name", platform.processor()), named.get("model", ""))))
