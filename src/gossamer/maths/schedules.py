"""Schedules: plain values that map the fraction of the run that has passed to a number.

Times are fractions of the run in [0, 1], so that a recipe holds for any length of training.
Every schedule is clamped: before its start it has its start value, after its end its end value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..errors import ConfigError


@runtime_checkable
class Schedule(Protocol):
    """A callable of the run's fraction t in [0, 1]."""

    def __call__(self, t: float) -> Any: ...


NEARLY = 1e-9  # times this close are the same optimiser step


def _progress(t: float, begin: float, end: float) -> float:
    """How far t lies between begin and end, clamped to [0, 1]."""
    if t >= end - NEARLY:
        return 1.0
    return 0.0 if t <= begin else (t - begin) / (end - begin)


@dataclass(frozen=True)
class _Ramp:
    """From `first` at time `begin` to `last` at time `end`."""

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise ConfigError(
                f"schedule needs 0 <= begin <= end <= 1 (fractions of the run), got begin={self.begin}, end={self.end}"
            )


@dataclass(frozen=True)
class Constant:
    """The same value at any time."""

    value: float

    def __call__(self, t: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line."""

    def __call__(self, t: float) -> float:
        x = _progress(t, self.begin, self.end)
        return self.first if x == 0 else self.last if x == 1 else self.first + (self.last - self.first) * x


@dataclass(frozen=True)
class Cubic(_Ramp):
    """last + (first - last) (1 - x)^3: fast at first, flat at the end (Zhu & Gupta 2017, eq. 1).

    >>> round(Cubic(1.0, 0.1)(0.5), 6)
    0.2125
    """

    def __call__(self, t: float) -> float:
        x = _progress(t, self.begin, self.end)
        return self.last + (self.first - self.last) * (1.0 - x) ** 3


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine from `first` down to `last` (Dettmers & Zettlemoyer 2019; Evci et al. 2020, eq. for f_decay)."""

    last: float = 0.0

    def __call__(self, t: float) -> float:
        x = _progress(t, self.begin, self.end)
        return self.last + (self.first - self.last) * 0.5 * (1.0 + math.cos(math.pi * x))


@dataclass(frozen=True)
class Exponential(_Ramp):
    """first (last / first)^x: every equal piece of time divides by the same factor. Both values must be positive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first <= 0 or self.last <= 0:
            raise ConfigError(f"an exponential schedule needs positive values, got {self.first} and {self.last}")

    def __call__(self, t: float) -> float:
        return self.first * (self.last / self.first) ** _progress(t, self.begin, self.end)


@dataclass(frozen=True)
class Fade:
    """exp(-efolds x) from 1 at `begin`, and exactly 0 from `end` on (the soft mask of progressive gradient flow).

    >>> Fade(3.0, 0.0, 0.9)(0.3) == math.exp(-1.0), Fade(3.0, 0.0, 0.9)(0.9)
    (True, 0.0)
    """

    efolds: float = 16.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (self.efolds > 0 and math.isfinite(self.efolds)):
            raise ConfigError(f"a fading mask needs a positive, finite number of e-folds, got {self.efolds}")
        _Ramp(1.0, 0.0, self.begin, self.end)  # checks the times

    def __call__(self, t: float) -> float:
        x = _progress(t, self.begin, self.end)
        return 0.0 if x == 1 else math.exp(-self.efolds * x)


@dataclass(frozen=True)
class Steps:
    """A table of (time, value) rows; each value holds from its time on. Values may be numbers or patterns.

    >>> Steps(((0.0, 1.0), (0.5, 0.1)))(0.75)
    0.1
    """

    rows: tuple[tuple[float, Any], ...]

    def __post_init__(self) -> None:
        times = [row[0] for row in self.rows]
        if not times or times != sorted(times) or times[0] != 0.0 or times[-1] > 1.0:
            raise ConfigError(f"a step table needs ascending times from 0.0 up to at most 1.0, got {times}")

    def __call__(self, t: float) -> Any:
        return [value for time, value in self.rows if time <= max(t, 0.0) + NEARLY][-1]


def geometric_densities(density: float, phases: int) -> tuple[float, ...]:
    """The density after each of `phases` equal relative prunings that end at `density` (iterative magnitude pruning).

    >>> geometric_densities(0.25, 2)
    (0.5, 0.25)
    """
    if not 0.0 < density <= 1.0 or phases < 1:
        raise ConfigError(f"needs 0 < density <= 1 and phases >= 1, got density={density}, phases={phases}")
    return (*(density ** (k / phases) for k in range(1, phases)), density)


@dataclass(frozen=True)
class Every:
    """Due at optimiser steps that are multiples of `interval` and lie in (start, stop] of the run.

    Args:
        interval: steps between updates if an int, a fraction of the run if a float.
        start, stop: fractions of the run.
    """

    interval: int | float = 100
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ConfigError(f"update interval must be positive, got {self.interval}")
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ConfigError(
                f"needs 0 <= start <= stop <= 1 (fractions of the run), got start={self.start}, stop={self.stop}"
            )

    def stride(self, steps: int) -> int:
        """Optimiser steps between two updates in a run of `steps`."""
        return self.interval if isinstance(self.interval, int) else max(1, round(self.interval * steps))

    def _bounds(self, steps: int) -> tuple[int, int]:
        k = self.stride(steps)
        return math.floor(self.start * steps / k + 1e-9), math.floor(self.stop * steps / k + 1e-9)

    def due(self, step: int, steps: int) -> bool:
        """Whether an update follows optimiser step `step` (counted from 1) of `steps`."""
        k = self.stride(steps)
        first, last = self._bounds(steps)
        return step > 0 and step % k == 0 and first < step // k <= last

    def progress(self, step: int, steps: int) -> float:
        """Position of an update in its window: (c - c0) / (c1 - c0) in updates, so exactly 1.0 at the last one."""
        first, last = self._bounds(steps)
        return min(1.0, max(0.0, (step // self.stride(steps) - first) / max(1, last - first)))

    def check(self, steps: int) -> None:
        """Raise ConfigError if no update would ever happen in a run of `steps`."""
        first, last = self._bounds(steps)
        if last <= first:
            raise ConfigError(
                f"no mask update would happen: every {self.stride(steps)} steps within "
                f"({self.start:g}, {self.stop:g}] of {steps} steps; lower the interval or train longer"
            )
