"""Masks that are set once: pruning at initialisation, one-shot pruning, and dense training as the control."""

from __future__ import annotations

from ..errors import unknown
from ..sparsify.allocation import ER, ERK, Allocation, Global, Uniform, UniformPlus
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Grasp, Magnitude, Random, Score, Snip, Synflow
from ..sparsify.updates import SetTo

ALLOCATIONS: dict[str, Allocation] = {
    "uniform": Uniform(),
    "uniform_plus": UniformPlus(),
    "er": ER(),
    "erk": ERK(),
    "erk_plus": ERK(last_dense=True),
}
RATIOS: dict[str, Score] = {"snip": Snip(), "grasp": Grasp(), "magnitude": Magnitude()}


def dense() -> Recipe:
    """Ordinary training: nothing is masked."""
    return Recipe("dense")


def magnitude(sparsity: float = 0.9, allocation: Allocation = Global()) -> Recipe:
    """One-shot magnitude pruning of the weights as they are, mask fixed."""
    return Recipe("magnitude", updates=(SetTo(Magnitude(), 1 - sparsity, allocation),))


def random(sparsity: float = 0.9, allocation: str = "erk", scale_init: bool = False) -> Recipe:
    """A random mask at initialisation, never changed (Liu et al. 2022).

    Args:
        allocation: uniform, uniform_plus, er, erk, erk_plus, or the layer ratios of snip, grasp or magnitude.
    """
    if allocation in RATIOS:
        mask = SetTo(Random(), 1 - sparsity, ratios=RATIOS[allocation])
    elif allocation in ALLOCATIONS:
        mask = SetTo(Random(), 1 - sparsity, ALLOCATIONS[allocation])
    else:
        raise unknown("allocation", allocation, [*ALLOCATIONS, *RATIOS])
    return Recipe("random", updates=(mask,), scale_init=scale_init)


def snip(sparsity: float = 0.9, batches: int = 1) -> Recipe:
    """SNIP: keep the largest |w dL/dw| of one batch at initialisation (Lee et al. 2019)."""
    return Recipe("snip", updates=(SetTo(Snip(batches), 1 - sparsity),))


def grasp(sparsity: float = 0.9, temperature: float = 200.0, samples: int = 25) -> Recipe:
    """GraSP: keep what preserves gradient flow at initialisation (Wang et al. 2020; authors' T=200, 25 per class)."""
    return Recipe("grasp", updates=(SetTo(Grasp(temperature, samples), 1 - sparsity),))


def synflow(sparsity: float = 0.9, rounds: int = 100) -> Recipe:
    """SynFlow: data-free iterative pruning at initialisation (Tanaka et al. 2020; 100 rounds)."""
    return Recipe("synflow", updates=(SetTo(Synflow(), 1 - sparsity, rounds=rounds),))
