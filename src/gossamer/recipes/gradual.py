"""Sparsity that rises during training: gradual magnitude pruning and GraNet."""

from __future__ import annotations

from ..errors import ConfigError
from ..maths.schedules import Cosine, Cubic, Every
from ..sparsify.allocation import ERK, Allocation, Global
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Gradient, Magnitude, Random, Score
from ..sparsify.updates import PruneGrow, PruneTo, SetTo


def gmp(
    sparsity: float = 0.9,
    every: int | float = 100,
    start: float = 0.0,
    stop: float = 0.5,
    allocation: Allocation = Global(),
) -> Recipe:
    """Gradual magnitude pruning on the cubic schedule (Zhu & Gupta 2017)."""
    prune = PruneTo(Cubic(1.0, 1 - sparsity), allocation=allocation, when=Every(every, start, stop))
    return Recipe("gmp", updates=(prune,))


def granet(
    sparsity: float = 0.9,
    initial: float = 0.0,
    every: int | float = 100,
    rate: float = 0.5,
    prune_stop: float = 0.5,
    grow_stop: float = 1.0,
    growth: Score = Gradient(),
) -> Recipe:
    """GraNet: gradual pruning with zero-cost neuroregeneration (Liu et al. 2021, section 3).

    Args:
        initial: sparsity at the start; 0 is dense-to-sparse, 0.5 (random ERK mask) is sparse-to-sparse.
        rate: fraction regenerated at each update, cosine down to 0.005 (authors' 0.5).
        prune_stop: end of gradual pruning (authors: half of the run). grow_stop: end of regeneration.
    """
    if sparsity < initial:
        raise ConfigError(f"final sparsity {sparsity} must not be below initial sparsity {initial}")
    when = Every(every, stop=grow_stop)
    prune = PruneTo(Cubic(1 - initial, 1 - sparsity), when=Every(every, stop=prune_stop))
    regrow = PruneGrow(Cosine(rate, 0.005), Magnitude(), growth, when, rounding="ceil")
    begin = (SetTo(Random(), 1 - initial, ERK()),) if initial else ()
    return Recipe("granet", updates=(*begin, prune, regrow))
