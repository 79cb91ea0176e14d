"""How good objects with several objectives are: dominated volume, distance to a front, utility over preferences.

Larger is better in every objective.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError
from .order import non_dominated


def hypervolume(scores: Tensor, reference: Tensor) -> float:
    """Volume that dominates `reference` and is dominated by `scores`.

    Args:
        scores: (n, k). reference: (k,), a point worse than all that matter; what does not exceed it adds nothing.
    Raises:
        ShapeError: a reference of another length.

    By slices along the last objective: exact for any k, meant for fronts of up to some hundred points.
    """
    if scores.ndim != 2 or reference.shape != scores.shape[1:]:
        raise ShapeError(f"scores (n, k) need a reference (k,), got {tuple(scores.shape)} and {tuple(reference.shape)}")
    above = scores.double() - reference.double()
    above = above[(above > 0).all(1)]
    return _volume(above[non_dominated(above)].unique(dim=0)) if len(above) else 0.0


def _volume(points: Tensor) -> float:
    """Volume of the union of boxes from 0 to each of the points (n, k)."""
    if points.shape[1] == 1:
        return float(points.max())
    order = points[:, -1].argsort(descending=True)
    points, total = points[order], 0.0
    heights = [*points[:, -1].tolist(), 0.0]
    for count, (top, bottom) in enumerate(itertools.pairwise(heights), start=1):
        if top > bottom:
            slab = points[:count, :-1]
            total += (top - bottom) * _volume(slab[non_dominated(slab)])
    return total


def igd_plus(scores: Tensor, front: Tensor) -> float:
    """Mean over the front (m, k) of the distance to the nearest of `scores` (n, k), counting only what falls short.

    Source: Ishibuchi et al. 2015.
    """
    if not len(scores) or not len(front):
        raise ConfigError("the distance to a front needs at least one score and one point of the front")
    short = (front.double()[:, None] - scores.double()[None]).clamp_min(0)
    return float(short.square().sum(2).sqrt().min(1).values.mean())


def r2(scores: Tensor, utopia: Tensor, parts: int = 12) -> float:
    """Mean over preferences of the least weighted distance max_j w_j (utopia_j - score_j) to the utopian point.

    Args:
        scores: (n, k). utopia: (k,). parts: preferences are all w >= 0 of sum 1 in steps of 1 / parts.
    Source: Hansen & Jaszkiewicz 1998, with the weighted Chebyshev utility.
    """
    if parts < 1:
        raise ConfigError(f"preferences need at least one part, got {parts}")
    rows = [w for w in itertools.product(range(parts + 1), repeat=scores.shape[1]) if sum(w) == parts]
    weights = torch.tensor(rows, dtype=torch.float64) / parts
    away = (utopia.double() - scores.double()).clamp_min(0)
    return float((weights[:, None] * away[None]).amax(2).min(1).values.mean())
