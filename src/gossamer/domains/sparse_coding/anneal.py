"""Annealing: named settings of EM that are piecewise linear functions of the step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from ...errors import ConfigError, unknown

Points = Sequence[tuple[float, float]]
Curve = float | Points


@dataclass(frozen=True)
class Settings:
    """The values of one step: those of `Anneal`, as numbers."""

    T: float = 1.0
    ncut: float = 0.0
    anneal_prior: bool = False
    partial: float = 1.0
    data_noise: float = 0.0
    W_noise: float = 0.0
    pi_noise: float = 0.0
    sigma_noise: float = 0.0

    @property
    def beta(self) -> float:
        """Inverse temperature."""
        return 1.0 / self.T


@dataclass(frozen=True)
class Anneal:
    """How EM's settings move during a run: each is a number or points (position, value), joined by straight lines.

    A position is a step (int), a fraction of the run (float), or counted from its end (negative of either kind).

    Args:
        T: temperature of the posterior, >= 1 as a rule; ends at 1.
        ncut: 0 uses all data; 1 leaves out as many points as should have more active units than allowed.
        anneal_prior: whether the temperature also divides the log prior of the linear discrete models.
        partial: fraction of the data in each step; 0 or 1 is all.
        data_noise, W_noise, pi_noise, sigma_noise: standard deviation of Gaussian noise on data and parameters, in the
            units of each.
    Raises:
        ConfigError: positions that do not rise, a value that is not finite, T <= 0, or a share outside [0, 1].
    Source: prosper section 3.8.

    >>> Anneal(T=((0, 5.0), (0.8, 1.0)), ncut=((0, 0.0), (-0.5, 1.0))).at(40, 100).T
    3.0
    """

    T: Curve = 1.0
    ncut: Curve = 0.0
    anneal_prior: bool = False
    partial: Curve = 1.0
    data_noise: Curve = 0.0
    W_noise: Curve = 0.0
    pi_noise: Curve = 0.0
    sigma_noise: Curve = 0.0

    def __post_init__(self) -> None:
        for name, curve in self._curves().items():
            points = _points(curve)
            values = [value for _, value in points]
            if not points or not all(map(isfinite, values)):
                raise ConfigError(f"annealing of {name} needs finite values, got {curve}")
            low, high = {"T": (1e-12, float("inf")), "ncut": (0.0, 1.0), "partial": (0.0, 1.0)}.get(
                name, (0.0, float("inf"))
            )
            if not all(low <= value <= high for value in values):
                raise ConfigError(f"annealing of {name} needs values in [{low:g}, {high:g}], got {curve}")

    def _curves(self) -> dict[str, Curve]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "anneal_prior"}

    @classmethod
    def of(cls, given: Anneal | Mapping[str, Any] | None) -> Anneal:
        """An `Anneal` from a mapping of names to curves; raises ConfigError for a name that is none of its own."""
        if given is None or isinstance(given, Anneal):
            return given or cls()
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                raise unknown("annealing parameter", name, names)
        return cls(**given)

    def at(self, step: int, steps: int) -> Settings:
        """The values in step 0..steps - 1."""
        values = {name: _value(_points(curve), step, steps, name) for name, curve in self._curves().items()}
        return Settings(anneal_prior=self.anneal_prior, **values)


def _points(curve: Curve) -> Points:
    return ((0, float(curve)),) if isinstance(curve, int | float) else curve


def _value(points: Points, step: int, steps: int, name: str) -> float:
    places = [_place(position, steps) for position, _ in points]
    if places != sorted(places):
        raise ConfigError(f"annealing of {name}: positions must rise, got steps {places} of {steps}")
    after = bisect_right(places, step)
    if after in (0, len(places)):
        return float(points[max(after - 1, 0)][1])
    (x0, x1), (y0, y1) = places[after - 1 : after + 1], (points[after - 1][1], points[after][1])
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def _place(position: float, steps: int) -> float:
    place = position * steps if isinstance(position, float) else float(position)
    return place + steps if position < 0 else place
