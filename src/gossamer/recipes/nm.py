"""N:M sparsity: at most n of m consecutive weights, by straight-through training or after dense training.

Every recipe takes `layers`, rows (name pattern, (n, m)) for weights whose numbers differ, the first match wins;
`layout` and `tail` are those of `sparsify.patterns.NM`.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..maths.schedules import Every
from ..sparsify.accounting import churn
from ..sparsify.estimators import SRSTE, STE
from ..sparsify.groups import Select
from ..sparsify.patterns import NM, Pattern
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Magnitude
from ..sparsify.sparsifier import Sparsifier
from ..sparsify.updates import SetTo

EACH_STEP = SetTo(Magnitude(), when=Every(1))

Layers = tuple[tuple[str, tuple[int, int]], ...]


def ste(
    n: int = 2,
    m: int = 4,
    *,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    refresh: int = 1,
    freeze: float = 1.0,
    select: Select = Select(),
) -> Recipe:
    """N:M masks recomputed at every step, gradients straight through (Zhou et al. 2021, section 3.2).

    Args:
        refresh: steps between two rankings; the authors' 1.
        freeze: fraction of the run from which masks stay as they are; the authors' 1, never.
    """
    updates = (SetTo(Magnitude(), when=Every(refresh, stop=freeze)),)
    pattern, rows = _patterns(n, m, layers, layout, tail)
    return Recipe(f"ste-{n}:{m}", select, pattern, rows, STE(), updates)


def sr_ste(
    n: int = 2,
    m: int = 4,
    lam: float = 2e-4,
    decoupled: bool = False,
    *,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    refresh: int = 1,
    freeze: float = 1.0,
    select: Select = Select(),
) -> Recipe:
    """SR-STE: STE with sparse-refined decay of pruned weights (Zhou et al. 2021, eq. 9).

    Args:
        lam: pull of pruned weights to zero. The authors' 2e-4 suits 120 epochs of ImageNet; for shorter runs see
            `lambda_for`. It adds to weight decay: kept weights feel decay * w, pruned ones (decay + lam) * w.
        decoupled: after the step, w -= lr lam w, which Adam does not rescale; else part of the gradient, before
            any clipping that follows `after_backward`.
        refresh, freeze: as in `ste`.
    """
    base = ste(n, m, layers=layers, layout=layout, tail=tail, refresh=refresh, freeze=freeze, select=select)
    return base.replace(name=f"sr-ste-{n}:{m}", family=SRSTE(lam, decoupled))


def asp(
    n: int = 2,
    m: int = 4,
    *,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    select: Select = Select(),
) -> Recipe:
    """N:M by magnitude once, on a trained model, then retraining with the mask fixed (Mishra et al. 2021)."""
    pattern, rows = _patterns(n, m, layers, layout, tail)
    return Recipe(f"asp-{n}:{m}", select, pattern, rows, updates=(SetTo(Magnitude()),))


def _patterns(n: int, m: int, layers: Layers, layout: str, tail: str) -> tuple[NM, tuple[tuple[str, Pattern], ...]]:
    """The main pattern and those of single layers."""
    return NM(n, m, layout, tail), tuple((glob, NM(*pair, layout, tail)) for glob, pair in layers)


def lambda_for(efolds: float, lr_sum: float, momentum: float = 0.0) -> float:
    """The lambda under which a pruned weight that gets no other gradient shrinks by exp(-efolds) over a run.

    Args:
        efolds: about 60 in the authors' ImageNet runs; 3 to 60 work.
        lr_sum: sum of the learning rates of all steps. momentum: of SGD.
    Raises:
        ConfigError: an argument out of range.
    >>> lambda_for(60, 6e5 * 0.05, momentum=0.9)
    0.0002
    """
    if not (efolds > 0 and lr_sum > 0 and 0 <= momentum < 1):
        raise ConfigError(f"efolds={efolds}, lr_sum={lr_sum}, momentum={momentum}: need > 0, > 0 and in [0, 1)")
    return round(efolds * (1 - momentum) / lr_sum, 12)


class FlipLog:
    """Flips of masks per step, and how far masks have come from the first ones. Call it after each optimiser step.

    Attributes:
        total: mask entries.
        flips: changed entries in all steps so far.
        rows: {"step", "flips" (since the call before), "divergence" (from the first masks)}, entries of all layers.
        layers: name -> flips so far.
    Source: sparse architecture divergence, Zhou et al. 2021, section 3.3.
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        self._sparsifier = sparsifier
        self._first = self._snapshot()
        self._last = self._first
        self.total = sum(mask.numel() for mask in self._first.values())
        self.flips = 0
        self.layers = dict.fromkeys(self._first, 0)
        self.rows: list[dict[str, int]] = []

    def _snapshot(self) -> dict[str, Any]:
        return {name: mask.clone() for name, mask in self._sparsifier.masks.items()}

    def __call__(self) -> None:
        now = self._snapshot()
        changes = {name: change.flips for name, change in churn(self._last, now).items()}
        far = sum(change.flips for change in churn(self._first, now).values())
        for name, flips in changes.items():
            self.layers[name] += flips
        self.flips += sum(changes.values())
        self.rows.append({"step": self._sparsifier.step, "flips": sum(changes.values()), "divergence": far})
        self._last = now
