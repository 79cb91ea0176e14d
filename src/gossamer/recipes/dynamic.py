"""Sparse from start to end, with connections that move: SET, RigL and their ITOP settings."""

from __future__ import annotations

from ..maths.schedules import Constant, Cosine, Every
from ..sparsify.allocation import ERK, Allocation
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Gradient, Magnitude, Random, Score
from ..sparsify.updates import PruneGrow, SetTo


def set_(sparsity: float = 0.9, every: int | float = 100, rate: float = 0.3, allocation: Allocation = ERK()) -> Recipe:
    """SET: drop the smallest weights, grow as many at random (Mocanu et al. 2018; zeta 0.3)."""
    start = SetTo(Random(), 1 - sparsity, allocation)
    return Recipe("set", updates=(start, PruneGrow(Constant(rate), grow=Random(), when=Every(every))))


def rigl(
    sparsity: float = 0.9,
    every: int | float = 100,
    rate: float = 0.3,
    stop: float = 0.75,
    allocation: Allocation = ERK(),
) -> Recipe:
    """RigL: drop by magnitude, grow by gradient, rate alpha/2 (1 + cos) until `stop` (Evci et al. 2020: .3, .75)."""
    start = SetTo(Random(), 1 - sparsity, allocation)
    move = PruneGrow(Cosine(rate, end=stop), Magnitude(), Gradient(), Every(every, stop=stop))
    return Recipe("rigl", updates=(start, move))


def itop(
    sparsity: float = 0.9,
    growth: str = "random",
    every: int | float = 1000,
    rate: float = 0.5,
    allocation: Allocation = ERK(),
) -> Recipe:
    """ITOP: SET or RigL with a long interval and rate 0.5, so that many weights get their turn (Liu et al. 2021)."""
    grow: Score = Gradient() if growth == "gradient" else Random()
    start = SetTo(Random(), 1 - sparsity, allocation)
    return Recipe(f"itop-{growth}", updates=(start, PruneGrow(Cosine(rate, 0.005), grow=grow, when=Every(every))))
