"""What a limit on the number of active units does to a Bernoulli prior, and how to undo it."""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor


def binomial_moments(units: int, probability: float, active: int) -> tuple[float, float]:
    """(A, B): the probability of at most `active` active units, and the mean number of them times that event.

    >>> A, B = binomial_moments(10, 0.2, 10)
    >>> round(A, 12), round(B, 12)
    (1.0, 2.0)
    """
    p = [comb(units, k) * probability**k * (1 - probability) ** (units - k) for k in range(active + 1)]
    return sum(p), sum(k * v for k, v in enumerate(p))


def activity_correction(units: int, probability: float, active: int) -> float:
    """Factor from the mean activity of a unit under truncation to its prior probability: H pi A / B."""
    A, B = binomial_moments(units, probability, active)
    return units * probability * A / B


def active_counts(probabilities: Tensor) -> Tensor:
    """Distribution of the number of active units with probabilities of their own: (H,) -> (H + 1,)."""
    counts = torch.zeros(len(probabilities) + 1, dtype=torch.float64)
    counts[0] = 1.0
    for p in probabilities.double().tolist():
        counts[1:] = counts[1:] * (1 - p) + counts[:-1] * p
        counts[0] *= 1 - p
    return counts


def unit_corrections(probabilities: Tensor, active: int) -> tuple[float, Tensor]:
    """P(at most `active` units), and each unit's factor from truncated mean activity to prior probability.

    E[s_h | |s| <= g] = pi_h P(|s without h| <= g - 1) / P(|s| <= g).
    """
    p = probabilities.double()
    kept = float(active_counts(p)[: active + 1].sum())
    others = [float(active_counts(torch.cat([p[:h], p[h + 1 :]]))[:active].sum()) for h in range(len(p))]
    return kept, kept / torch.tensor(others, dtype=probabilities.dtype, device=probabilities.device)
