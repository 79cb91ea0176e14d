"""FLOPs of training, from what a run recorded: a backward pass is twice a forward pass, one half for each factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from .. import estimators as est
from ..recipe import Recipe
from ..weight_ops import HardZero
from .flops import Flops


@dataclass(frozen=True)
class TrainingCost:
    """FLOPs of a run per sample of a batch, summed over its steps (times the batch size: FLOPs of the run).

    Args:
        theoretical: what kernels that skip every masked weight would do.
        executed: what dense kernels with masked weights did.
        dense: dense training for as many steps.
        peak_density: largest density of the trained state; a dense gradient before training does not count.
        dense_gradient_steps: steps that needed gradients of masked weights.
    """

    theoretical: float
    executed: float
    dense: float
    peak_density: float
    dense_gradient_steps: int

    @property
    def relative(self) -> float:
        """theoretical / dense."""
        return self.theoretical / self.dense

    def __add__(self, other: TrainingCost) -> TrainingCost:
        """Both runs one after the other: rounds of a lottery ticket, fine-tuning after pruning."""
        return TrainingCost(
            self.theoretical + other.theoretical,
            self.executed + other.executed,
            self.dense + other.dense,
            max(self.peak_density, other.peak_density),
            self.dense_gradient_steps + other.dense_gradient_steps,
        )


def rigl_step_flops(f_s: float, f_d: float, every: float) -> float:
    """Mean FLOPs of a RigL step: (3 f_S dT + 2 f_S + f_D) / (dT + 1).

    Here dT = `every` sparse steps are followed by one with a dense gradient (Evci et al. 2020, appendix H).
    """
    return (3 * f_s * every + 2 * f_s + f_d) / (every + 1)


def training_flops(
    counts: Flops,
    history: Sequence[Mapping[str, Any]],
    steps: int | None = None,
    recipe: Recipe = Recipe(),
) -> TrainingCost:
    """FLOPs of the run that `history` records.

    Per step: 3 f_S; 2 f_S + f_D where masked weights need a gradient (growth by gradient, straight-through masters);
    3 f_D where the forward pass is dense. Between two rows densities are those of the earlier one. Scores that read
    data before training add 3 f_D for each batch.

    Args:
        counts: of `flops`; its layer names are those of the history.
        history: `Sparsifier.history`.
        steps: of the run so far; default: step of the last row.
        recipe: `Sparsifier.recipe`; it says how masks act on the passes.
    Raises:
        ConfigError: an empty history, rows out of order, or steps before its end.
    """
    end = _check(history, steps)
    f_d = counts.dense
    total, dense_steps = 0.0, 0
    for row, upcoming in zip(history, [*history[1:], None], strict=True):
        last = end if upcoming is None else int(upcoming["step"])
        length = last - int(row["step"])
        after = history[-1] if upcoming is None else upcoming
        wanted = min(length, int(after["dense_gradient_steps"]) - int(row["dense_gradient_steps"]))
        f_s = counts.at(row["layers"])
        middle = (int(row["step"]) + last) / 2 / max(1, end)
        usual = _step_flops(recipe, f_s, f_d, middle)
        total += (length - wanted) * usual + wanted * max(usual, 2 * f_s + f_d)
        dense_steps += wanted
    before = 3 * f_d * _batches_before(recipe)
    peak = 1.0 if _dense_state(recipe) else max(float(row["density"]) for row in history)
    return TrainingCost(total + before, 3 * f_d * end + before, 3 * f_d * end, peak, dense_steps)


def _check(history: Sequence[Mapping[str, Any]], steps: int | None) -> int:
    """The last step, once the rows make sense."""
    if not history:
        raise ConfigError("training FLOPs are counted from Sparsifier.history, which is empty")
    at = [int(row["step"]) for row in history]
    end = at[-1] if steps is None else steps
    if at != sorted(at) or end < at[-1]:
        raise ConfigError(f"history rows at steps {at[:3]} ... {at[-1]} are not in order or end after step {end}")
    return end


def _dense_state(recipe: Recipe) -> bool:
    """Whether all weights are trained state whatever the mask says."""
    return not (isinstance(recipe.family, est.Projected) and recipe.family.mask_grad)


def _step_flops(recipe: Recipe, f_s: float, f_d: float, time: float) -> float:
    """FLOPs of an ordinary step."""
    family = recipe.family
    if isinstance(family, est.Projected):
        if family.masks_gradient(time):
            return 3 * f_s
        zeroed = any(isinstance(op, HardZero) for op in recipe.weight_ops)
        return 2 * f_s + f_d if zeroed else 3 * f_d
    if isinstance(family, est.SoftMask) and family.soft(time) > 0:
        return 3 * f_d
    if isinstance(family, est.Scored) and family.train == "weights":
        return 3 * f_s
    return 2 * f_s + f_d


def _batches_before(recipe: Recipe) -> int:
    """Batches through the dense network that scores read before training (SNIP, GraSP, rounds of SynFlow)."""
    count = 0
    for update in recipe.updates:
        if update.when is None and "batch" in update.needs:
            scores = (getattr(update, "ratios", None), getattr(update, "score", None))
            per_round = max(getattr(score, "batches", 1) for score in scores if score is not None and score.needs)
            count += per_round * getattr(update, "rounds", 1)
    return count
