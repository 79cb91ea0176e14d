"""Pareto fronts of points with several objectives, and the area that a two-objective front dominates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import ConfigError, NumericsError, ShapeError

Points = Sequence[Sequence[float]] | NDArray[np.float64]


def _as_minimisation(points: Points, maximise: Sequence[bool]) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        array = array.reshape(0, len(maximise))
    if array.ndim != 2 or array.shape[1] != len(maximise):
        raise ShapeError(f"points have shape {array.shape}, expected (n, {len(maximise)})")
    if np.isnan(array).any():
        raise NumericsError("a point holds NaN")
    return np.where(np.asarray(maximise), -array, array)


def front(points: Points, maximise: Sequence[bool]) -> list[int]:
    """Indices of the points that no other point dominates, in their original order.

    A point dominates another when it is at least as good in every objective and better in one; equal
    points do not dominate each other, so duplicates all stay.

    Args:
        points: (n, objectives). maximise: per objective, True where larger is better.

    >>> front([(0.9, 10.0), (0.8, 5.0), (0.7, 7.0)], maximise=(True, False))
    [0, 1]
    """
    costs = _as_minimisation(points, maximise)
    worse = (costs[:, None] >= costs[None]).all(-1) & (costs[:, None] > costs[None]).any(-1)
    return [int(i) for i in np.flatnonzero(~np.any(worse, axis=1))]


def hypervolume(points: Points, reference: Sequence[float], maximise: Sequence[bool]) -> float:
    """Area between the front of two-objective `points` and `reference`; points beyond it add nothing.

    Args:
        points: (n, 2). reference: (2,), a point worse than all that matter.

    >>> hypervolume([(1.0, 2.0), (2.0, 1.0)], reference=(3.0, 3.0), maximise=(False, False))
    3.0
    """
    if len(maximise) != 2:
        raise ConfigError(f"hypervolume is defined here for 2 objectives, got {len(maximise)}")
    costs = _as_minimisation(points, maximise)
    corner = _as_minimisation([reference], maximise)[0]
    area, ceiling = 0.0, corner[1]
    for first, second in sorted(map(tuple, costs[(costs < corner).all(1)])):
        if second < ceiling:
            area += (corner[0] - first) * (ceiling - second)
            ceiling = second
    return float(area)
