"""Expensive scores in processes of their own, a few architectures to each; what is finished is not run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, GossamerError, ShapeError
from ..runs.sweep import Job, RunJob, sweep
from .evaluator import Evaluator
from .space import Architecture


def evaluate_in_processes(
    evaluator: Evaluator,
    architectures: Sequence[Architecture],
    score: RunJob,
    folder: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    devices: Sequence[str] = ("cpu",),
    chunk: int = 1,
) -> None:
    """Score architectures at once and enter them into the evaluator, in the order given.

    Known ones and repetitions cost nothing; no more are scored than the budget allows. A search that asks the
    evaluator afterwards gets them all from memory.

    Args:
        score: `score(config, folder, device) -> {"values": [...]}`, a function at the top of a module; config is
            {"architectures": [labels as `SearchSpace.describe` gives them], "options": options}.
        folder: of the processes; the same call again skips what finished there.
        devices: one process on each at a time. chunk: architectures to a process (starting one takes seconds).
    Raises:
        ConfigError: chunk < 1. ShapeError: a number of values that differs from the number of architectures.
        GossamerError: a process failed; its reason is given, what others found is kept.
    """
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, got {chunk}")
    fresh = [a for a in dict.fromkeys(architectures) if not evaluator.knows(a)][: evaluator.remaining]
    space, given = evaluator.space, dict(options or {})
    pieces = [fresh[start : start + chunk] for start in range(0, len(fresh), chunk)]
    labels = [[space.describe(space.check(a)) for a in piece] for piece in pieces]
    configs = [{"architectures": found, "options": given} for found in labels]
    jobs = [Job(f"{evaluator.spent + number * chunk:05d}", config) for number, config in enumerate(configs)]
    done = sweep(jobs, score, folder, devices)
    for job, piece in zip(jobs, pieces, strict=True):
        if job.name not in done.results:
            continue
        values = done.results[job.name]["values"]
        if len(values) != len(piece):
            raise ShapeError(f"process {job.name} returned {len(values)} values for {len(piece)} architectures")
        for architecture, value in zip(piece, values, strict=True):
            evaluator.record(architecture, value)
    if done.failures:
        name, reason = next(iter(done.failures.items()))
        raise GossamerError(f"{len(done.failures)} of {len(jobs)} processes failed; {name}: {reason}")
