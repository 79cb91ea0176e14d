"""The bars test: pictures made of horizontal and vertical bars, and how well a dictionary found them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ...errors import ConfigError, ShapeError, unknown

Array = NDArray[np.float64]
COMBINATIONS = ("sum", "max")


def bar_dictionary(side: int = 5, value: float = 10.0) -> Array:
    """The 2 * side bars of a square picture, (side^2, 2 side): horizontal ones first."""
    bars = np.zeros((side, side, 2 * side))
    for i in range(side):
        bars[i, :, i] = value
        bars[:, i, side + i] = value
    return bars.reshape(side * side, -1)


@dataclass(frozen=True)
class Bars:
    """Generated pictures `Y` (n, D), the bars `W` (D, H) and the latents `S` (n, H) behind them."""

    Y: Array
    W: Array
    S: Array


def bars(
    n: int = 1000,
    side: int = 5,
    value: float = 10.0,
    sigma: float = 2.0,
    states: tuple[float, ...] = (0.0, 1.0),
    probabilities: tuple[float, ...] = (0.8, 0.2),
    combine: Literal["sum", "max"] = "sum",
    seed: int = 0,
) -> Bars:
    """Pictures of bars, each with a state of its own, combined linearly or by the maximum, with Gaussian noise.

    Args:
        n: pictures. side: pixels of a side; there are 2 * side bars. value: of a bar's pixels. sigma: of the noise.
        states, probabilities: values that multiply a bar, and how often each occurs.
    Raises:
        ConfigError: an unknown way to combine, or probabilities that do not sum to 1.
    Source: prosper section 4; Földiák 1990.
    """
    if combine not in COMBINATIONS:
        raise unknown("way to combine", combine, COMBINATIONS)
    if len(states) != len(probabilities) or abs(sum(probabilities) - 1) > 1e-9:
        raise ConfigError(f"needs a probability for each of {states}, summing to 1, got {probabilities}")
    random = np.random.default_rng(seed)
    W = bar_dictionary(side, value)
    S = random.choice(states, size=(n, W.shape[1]), p=probabilities)
    clean = S @ W.T if combine == "sum" else (S[:, None] * W).max(2)
    return Bars(clean + sigma * random.normal(size=clean.shape), W, S)


@dataclass(frozen=True)
class Match:
    """Which learned column is which true one: `order` (H,), `error` mean absolute error (H,), `cosine` (H,)."""

    order: NDArray[np.int64]
    error: Array
    cosine: Array


def match(learned: Array, truth: Array, signed: bool = False) -> Match:
    """The best one-to-one assignment of learned to true columns, by mean absolute error.

    Args:
        learned: (D, K >= H). truth: (D, H). signed: a column may also be the negative of the true one.
    Raises:
        ShapeError: fewer learned columns than true ones, or other rows.
    """
    if learned.shape[0] != truth.shape[0] or learned.shape[1] < truth.shape[1]:
        raise ShapeError(f"cannot match columns of {learned.shape} with those of {truth.shape}")
    signs = (1.0, -1.0) if signed else (1.0,)
    errors = [np.abs(sign * learned[:, :, None] - truth[:, None]).mean(0) for sign in signs]
    rows, columns = linear_sum_assignment(np.minimum.reduce(errors))
    order = rows[np.argsort(columns)]
    chosen = learned[:, order]
    scale = np.linalg.norm(chosen, axis=0) * np.linalg.norm(truth, axis=0)
    cosine = (chosen * truth).sum(0) / np.maximum(scale, 1e-300)
    error = np.minimum.reduce(errors)[order, np.arange(truth.shape[1])]
    return Match(order, error, np.abs(cosine) if signed else cosine)
