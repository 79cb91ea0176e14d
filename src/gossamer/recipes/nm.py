"""N:M sparsity: at most n of m consecutive weights, by straight-through training or after dense training."""

from __future__ import annotations

from ..maths.schedules import Every
from ..sparsify.estimators import SRSTE, STE
from ..sparsify.groups import Select
from ..sparsify.patterns import NM
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Magnitude
from ..sparsify.updates import SetTo

EACH_STEP = SetTo(Magnitude(), when=Every(1))


def ste(n: int = 2, m: int = 4, select: Select = Select()) -> Recipe:
    """N:M masks recomputed at every step, gradients straight through (Zhou et al. 2021, section 3.2)."""
    return Recipe(f"ste-{n}:{m}", select, NM(n, m), family=STE(), updates=(EACH_STEP,))


def sr_ste(n: int = 2, m: int = 4, lam: float = 2e-4, decoupled: bool = False, select: Select = Select()) -> Recipe:
    """SR-STE: STE with sparse-refined decay of pruned weights (Zhou et al. 2021, eq. 9; lambda 2e-4)."""
    return Recipe(f"sr-ste-{n}:{m}", select, NM(n, m), family=SRSTE(lam, decoupled), updates=(EACH_STEP,))


def asp(n: int = 2, m: int = 4, select: Select = Select()) -> Recipe:
    """N:M by magnitude once, on a trained model, then retraining with the mask fixed (Mishra et al. 2021)."""
    return Recipe(f"asp-{n}:{m}", select, NM(n, m), updates=(SetTo(Magnitude()),))
