"""SIGINT and SIGTERM as a flag, so that a loop ends a step, saves, and leaves with 130 or 143."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(SystemExit):
    """A run was stopped by a signal after its state was saved; the exit code is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class StopSignals:
    """While it is entered, the first SIGINT or SIGTERM only sets `received`; a second one exits at once.

    Outside the main thread Python cannot handle signals: there it does nothing.

    >>> with StopSignals() as stop:
    ...     for step in range(3):
    ...         if stop.received:
    ...             raise Interrupted(stop.received)
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
