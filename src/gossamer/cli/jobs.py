"""Independent jobs of a command, each in a process of its own; finished ones are not run again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.cli.console import say
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.runs.sweep import Job


def slots_of(workers: int | None, devices: str | None = None) -> tuple[str, ...]:
    """A device for each job at a time: those named, separated by commas, or as many CPUs as wanted or present."""
    return tuple(devices.split(",")) if devices else ("cpu",) * (workers or os.cpu_count() or 1)


def run_all(
    jobs: Sequence[Job],
    run: Callable[[dict[str, Any], Path, str], dict[str, Any]],
    folder: Path,
    slots: tuple[str, ...],
) -> dict[str, Any]:
    """Name of each job -> its result. Raises GossamerError naming the first that failed, when all have ended."""
    from gossamer.runs.sweep import sweep

    done = sweep(jobs, run, folder, slots, lambda name, failure: say(f"  {name}: {failure or 'done'}"))
    if done.failures:
        name, reason = next(iter(done.failures.items()))
        raise GossamerError(f"{len(done.failures)} of {len(jobs)} jobs failed; {name}: {reason}")
    return done.results
