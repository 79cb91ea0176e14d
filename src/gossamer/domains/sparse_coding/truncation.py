"""What a limit on the number of active units does to a Bernoulli prior, and how to undo it."""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

LEAST_KEPT = 0.5  # share of points that must have few enough active units for a corrected prior


def binomial_moments(units: int, probability: float, active: int) -> tuple[float, float]:
    """(A, B): the probability of at most `active` active units, and the mean number of them times that event.

    >>> A, B = binomial_moments(10, 0.2, 10)
    >>> round(A, 12), round(B, 12)
    (1.0, 2.0)
    """
    p = [comb(units, k) * probability**k * (1 - probability) ** (units - k) for k in range(active + 1)]
    return sum(p), sum(k * v for k, v in enumerate(p))


def corrected_activity(units: int, probability: float, active: int, mean: float) -> float:
    """Prior probability from the mean activity of a unit under truncation: times H pi A / B.

    Where the outcome would expect more than half of the points to have too many active units, the truncation says
    nothing about the prior, and the mean is returned as it is: else the prior could run away towards 1.

    Args:
        probability: the prior of the step. mean: expected active units per point and unit.
    """
    few, count = binomial_moments(units, probability, active)
    corrected = min(mean * units * probability * few / count, 1.0) if count > 0 else mean
    return corrected if binomial_moments(units, corrected, active)[0] >= LEAST_KEPT else mean


def active_counts(probabilities: Tensor) -> Tensor:
    """Distribution of the number of active units with probabilities of their own: (H,) -> (H + 1,)."""
    counts = torch.zeros(len(probabilities) + 1, dtype=torch.float64)
    counts[0] = 1.0
    for p in probabilities.double().tolist():
        counts[1:] = counts[1:] * (1 - p) + counts[:-1] * p
        counts[0] *= 1 - p
    return counts


def few_active(probabilities: Tensor, active: int) -> float:
    """P(at most `active` units) for probabilities of their own."""
    return float(active_counts(probabilities)[: active + 1].sum())


def corrected_activities(probabilities: Tensor, active: int, mean: Tensor) -> Tensor:
    """`corrected_activity` for units with probabilities of their own, (H,).

    E[s_h | |s| <= g] = pi_h P(|s without h| <= g - 1) / P(|s| <= g).
    """
    p = probabilities.double()
    others = [few_active(torch.cat([p[:h], p[h + 1 :]]), active - 1) for h in range(len(p))]
    corrected = (mean * few_active(p, active) / torch.tensor(others).to(mean).clamp(min=1e-12)).clamp(max=1.0)
    return corrected if few_active(corrected, active) >= LEAST_KEPT else mean
