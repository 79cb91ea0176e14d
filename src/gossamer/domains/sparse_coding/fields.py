"""How much a learned field looks like an edge detector: the fit of a Gabor function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ...errors import ShapeError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gabor:
    """A Gabor function fitted to a field.

    Attributes:
        r2: share of the field's squares that it explains, in [0, 1].
        frequency: cycles per pixel. orientation: of the wave vector, radians in [0, pi).
        along, across: standard deviations of the envelope in pixels, along and across the wave vector.
        y, x: centre in pixels. fit: the function itself, of the field's shape.
    """

    r2: float
    frequency: float
    orientation: float
    along: float
    across: float
    y: float
    x: float
    fit: Array


def fit_gabor(field: Array) -> Gabor:
    """The best Gabor function for a field (side, side), amplitude and phase by linear least squares.

    Starts from the strongest frequency and the centre of energy, with four widths.

    Raises:
        ShapeError: not a square of at least 4 x 4, or all zero.
    """
    if field.ndim != 2 or min(field.shape) < 4 or not np.any(field):
        raise ShapeError(f"a Gabor function needs a field of at least 4 x 4 that is not zero, got {field.shape}")
    field = field / np.linalg.norm(field)
    rows, columns = np.mgrid[: field.shape[0], : field.shape[1]].astype(float)
    energy = field**2
    y, x = (energy * rows).sum(), (energy * columns).sum()
    fy, fx = _peak(field)
    side = max(field.shape)
    limits = ([-1, -1, -1, -1, 0.4, 0.4], [side, side, 1, 1, side, side])

    def residual(p: Array) -> Array:
        basis = _basis(p, rows, columns)
        rest: Array = field.ravel() - basis @ np.linalg.lstsq(basis, field.ravel(), rcond=None)[0]
        return rest

    starts = [(y, x, fy, fx, along, across) for along, across in ((1, 1.5), (1.5, 3), (2.5, 2.5), (side / 2, side / 2))]
    fits = [least_squares(residual, np.array(start), bounds=limits, max_nfev=60) for start in starts]
    best = min(fits, key=lambda found: found.cost)
    p = best.x
    return Gabor(
        r2=float(1 - 2 * best.cost),
        frequency=float(np.hypot(p[2], p[3])),
        orientation=float(np.arctan2(p[2], p[3]) % np.pi),
        along=float(p[4]),
        across=float(p[5]),
        y=float(p[0]),
        x=float(p[1]),
        fit=(field.ravel() - best.fun).reshape(field.shape),
    )


def _basis(p: Array, rows: Array, columns: Array) -> Array:
    """Cosine and sine under the envelope, (pixels, 2)."""
    y, x, fy, fx, along, across = p
    dy, dx = rows - y, columns - x
    angle = np.arctan2(fy, fx)
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    envelope = np.exp(-0.5 * ((u / along) ** 2 + (v / across) ** 2))
    phase = 2 * np.pi * (fy * dy + fx * dx)
    return np.stack([(envelope * np.cos(phase)).ravel(), (envelope * np.sin(phase)).ravel()], 1)


def _peak(field: Array) -> tuple[float, float]:
    """The frequency (fy, fx) of largest power, on a grid four times as fine as the field's own."""
    size = [4 * length for length in field.shape]
    power = np.abs(np.fft.fft2(field, size)) ** 2
    fy, fx = (np.fft.fftfreq(length) for length in size)
    power[np.hypot(fy[:, None], fx) < 0.5 / max(field.shape)] = 0
    row, column = np.unravel_index(int(power.argmax()), power.shape)
    return float(fy[row]), float(fx[column])


def is_oriented(found: Gabor, side: int, r2: float = 0.7) -> bool:
    """Whether a field is an edge detector: a Gabor explains it, and its envelope lies inside the patch.

    The wave has at least a third of a period under the envelope (a blob has less), and the envelope's deviation along
    the wave is below a third of the side (a grating's is above).
    """
    periods = found.frequency * 2 * found.along
    return found.r2 >= r2 and periods >= 1 / 3 and found.along < side / 3
