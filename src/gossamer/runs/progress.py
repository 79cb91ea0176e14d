"""Progress on stderr: a bar with the expected time left on a terminal, a line every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows how far a run is. `update(step, loss=...)` may be called at every step; it is cheap.

    Args:
        total: number of steps. label: the words before the bar. shown: False is silent.
        stream: where to write; stderr, so that stdout stays free for results.
    """

    def __init__(self, total: int, label: str, shown: bool = True, stream: TextIO | None = None) -> None:
        self.total, self.label, self.shown = total, label, shown
        self.stream = stream or sys.stderr
        self._bar: RichProgress | None = None
        self._tenth = self._start = 0
        self._started = 0.0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self.shown and self.stream.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
            )
            self._bar = RichProgress(*columns, console=Console(file=self.stream), refresh_per_second=4)
            self._bar.start()
            self._bar.add_task(self.label, total=self.total, values="")
        return self

    def start_at(self, step: int) -> None:
        """Begin at `step` rather than 0: a resumed run."""
        self._start = step
        self._tenth = 10 * step // max(self.total, 1)

    def update(self, step: int, **values: float) -> None:
        """Say that `step` steps are done. `values` are shown beside the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, values=_text(values))
        elif self.shown and (tenth := 10 * step // max(self.total, 1)) > self._tenth:
            self._tenth = tenth
            done, elapsed = max(step - self._start, 1), time.monotonic() - self._started
            left = elapsed / done * (self.total - step)
            line = f"{self.label}: {step}/{self.total}, {elapsed:.0f} s, {left:.0f} s left {_text(values)}"
            print(line.rstrip(), file=self.stream, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _text(values: dict[str, Any]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
