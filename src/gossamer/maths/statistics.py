"""Means with honest intervals: Student's t, paired differences, equivalence, bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gossamer.errors import ConfigError, NumericsError, ShapeError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values, their sample standard deviation, and a confidence interval of the mean.

    `sd`, `low` and `high` are NaN where `n` is 1: a single run has no spread.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}] (n={self.n})"


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests: `equivalent` when the 1 - 2 alpha interval lies inside the margin."""

    difference: float
    low: float
    high: float
    p: float
    equivalent: bool


def _vector(values: Sequence[float], least: int = 1) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < least:
        raise ShapeError(f"needs a list of at least {least} values, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise NumericsError(f"values must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ConfigError(f"{name} must lie strictly between 0 and 1, got {value}")
    return value


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is NaN for a single value.

    >>> mean_sd([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    array = _vector(values)
    sd = float(array.std(ddof=1)) if array.size > 1 else float("nan")
    return float(array.mean()), sd


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Student's t interval of the mean of independent, roughly normal values (one per seed).

    Raises:
        ConfigError: confidence outside (0, 1). NumericsError: NaN or infinity. ShapeError: no values.
    """
    _share("confidence", confidence)
    mean, sd = mean_sd(values)
    n = len(values)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * sd / np.sqrt(n) if n > 1 else float("nan")
    return Estimate(mean, sd, float(mean - half), float(mean + half), n)


def _differences(a: Sequence[float], b: Sequence[float]) -> Array:
    first, second = _vector(a), _vector(b)
    if first.size != second.size:
        raise ShapeError(f"paired values need equal lengths, got {first.size} and {second.size}")
    return first - second


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Estimate:
    """t interval of the mean of `a - b`, where a[i] and b[i] share a seed.

    Pairing removes the variance that the two arms share (same data order, same initial weights).
    """
    return t_interval(_differences(a, b).tolist(), confidence)


def equivalence(
    a: Sequence[float], b: Sequence[float], margin: float, *, alpha: float = 0.05, paired: bool = True
) -> Equivalence:
    """Two one-sided t tests (TOST): are the means of `a` and `b` within `margin` of each other?

    Args:
        a, b: one value per seed, at least two each; paired runs have equal lengths.
        margin: the largest difference that does not matter, > 0, in the unit of the values.
        alpha: level of each one-sided test; the reported interval has confidence 1 - 2 alpha.
        paired: False uses Welch's test for independent runs.
    Source: Schuirmann 1987.
    """
    _share("alpha", alpha)
    if not margin > 0:
        raise ConfigError(f"margin must be positive, got {margin}")
    difference, error, freedom = _paired_moments(a, b) if paired else _welch_moments(a, b)
    if error == 0:
        p = 0.0 if abs(difference) < margin else 1.0
        half = 0.0
    else:
        above = stats.t.sf((difference + margin) / error, freedom)
        below = stats.t.cdf((difference - margin) / error, freedom)
        p = float(max(above, below))
        half = float(stats.t.ppf(1 - alpha, freedom) * error)
    return Equivalence(difference, difference - half, difference + half, p, p < alpha)


def _paired_moments(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    gaps = _vector(_differences(a, b).tolist(), least=2)
    return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(gaps.size)), gaps.size - 1


def _welch_moments(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    first, second = _vector(a, least=2), _vector(b, least=2)
    va, vb = first.var(ddof=1) / first.size, second.var(ddof=1) / second.size
    error = float(np.sqrt(va + vb))
    spread = va**2 / (first.size - 1) + vb**2 / (second.size - 1)
    freedom = float((va + vb) ** 2 / spread) if spread > 0 else float(first.size + second.size - 2)
    return float(first.mean() - second.mean()), error, freedom


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Array], float] = np.mean,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap interval of any statistic; `mean` of the result is the statistic itself.

    Source: Efron 1979. Use it where the values are far from normal; below about 10 values it is too narrow.
    """
    _share("confidence", confidence)
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}")
    array = _vector(values)
    picks = np.random.default_rng(seed).integers(0, array.size, (resamples, array.size))
    drawn = np.array([statistic(array[pick]) for pick in picks], dtype=np.float64)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(statistic(array)), mean_sd(values)[1], float(low), float(high), array.size)
