"""Many runs, one process for each, a few at a time; finished ones are skipped, failed ones named."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gossamer.errors import ConfigError, GossamerError
from gossamer.runs.files import write_json
from gossamer.runs.folder import same_config
from gossamer.runs.signals import Interrupted, StopSignals

RunJob = Callable[[dict[str, Any], Path, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """One run of a sweep: `name` is its folder, `config` its JSON arguments."""

    name: str
    config: dict[str, Any]


@dataclass
class Sweep:
    """What came out: results by job, and the reason of each failure by job."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def sweep(
    jobs: Sequence[Job],
    run: RunJob,
    output: str | Path,
    devices: Sequence[str] = ("cpu",),
    on_end: Callable[[str, str | None], None] | None = None,
) -> Sweep:
    """Run all jobs, each in a fresh process, as many at a time as there are devices.

    A job is finished when `output/NAME/sweep.json` holds its result; it is then not run again. A job that
    raises or dies is named in `failures` (its traceback stands in `output/NAME/error.txt`), and the others go
    on.

    Args:
        run: `run(config, folder, device) -> result`, a function at the top of a module (it is imported by the
            new process); the result holds JSON values. It gets its share of the cores.
        devices: one slot for each entry, such as ("cuda:0", "cuda:1") or ("cpu",) * 2.
        on_end: called with (name, None or reason) as each job ends.
    Raises:
        ConfigError: two jobs of one name, a name that leaves the folder, or a finished job whose config has
            changed.
        Interrupted: SIGINT or SIGTERM; the running jobs get SIGTERM and time to save.
    """
    output = Path(output)
    _check_names(jobs)
    done = Sweep()
    waiting = []
    for job in jobs:
        result = _finished(output / job.name, job)
        if result is None:
            waiting.append(job)
        else:
            done.results[job.name] = result
    slots, running = list(devices), dict[Any, tuple[BaseProcess, Job, str]]()
    with StopSignals() as stop:
        while waiting or running:
            while waiting and slots and not stop.received:
                job, device = waiting.pop(0), slots.pop(0)
                process = _start(job, run, output / job.name, device, len(devices))
                running[process.sentinel] = process, job, device
            for sentinel in wait(list(running), timeout=0.2):
                process, job, device = running.pop(sentinel)
                slots.append(device)
                reason = _take_in(process, job, output / job.name, done)
                if on_end:
                    on_end(job.name, reason)
            if stop.received:
                _end([process for process, _, _ in running.values()])
                raise Interrupted(stop.received)
    order = [job.name for job in jobs]
    done.results = {name: done.results[name] for name in order if name in done.results}
    return done


def _check_names(jobs: Sequence[Job]) -> None:
    names: set[str] = set()
    for job in jobs:
        if job.name in names:
            raise ConfigError(f"two jobs of the sweep are named {job.name!r}")
        if not job.name or job.name.startswith(".") or Path(job.name).name != job.name:
            raise ConfigError(f"a job's name is a folder's name, not {job.name!r}")
        names.add(job.name)


def _finished(folder: Path, job: Job) -> dict[str, Any] | None:
    path = folder / "sweep.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config, result = record["config"], record["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; remove it to run {job.name} again") from error
    same_config(config, json.loads(json.dumps(job.config)))
    return dict(result)


def _start(job: Job, run: RunJob, folder: Path, device: str, slots: int) -> BaseProcess:
    threads = max(1, (os.cpu_count() or 1) // slots)
    process = mp.get_context("spawn").Process(target=_work, args=(job, run, folder, device, threads))
    process.start()
    return process


def _work(job: Job, run: RunJob, folder: Path, device: str, threads: int) -> None:
    """The body of a job's process."""
    import torch

    if os.name == "posix":
        os.setpgid(0, 0)  # a Ctrl-C reaches the sweep alone, which then asks every job to save
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        result = run(job.config, folder, device)
        write_json(folder / "sweep.json", {"config": job.config, "result": dict(result)})
    except Exception as error:
        own = isinstance(error, GossamerError)
        reason = str(error) if own else f"{type(error).__name__}: {error}"
        (folder / "error.txt").write_text(f"{reason}\n\n{traceback.format_exc()}", encoding="utf-8")
        raise SystemExit(1) from None


def _take_in(process: BaseProcess, job: Job, folder: Path, done: Sweep) -> str | None:
    """Record how a job ended; returns the reason where it failed."""
    process.join()
    result = _finished(folder, job)
    if process.exitcode == 0 and result is not None:
        done.results[job.name] = result
        return None
    report = folder / "error.txt"
    if report.exists():
        reason = report.read_text(encoding="utf-8").split("\n", 1)[0]
    else:
        reason = f"its process ended with exit code {process.exitcode}"
    done.failures[job.name] = reason
    return reason


def _end(processes: Sequence[BaseProcess], patience: float = 30.0) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(patience)
        if process.is_alive():
            process.kill()
            process.join()
