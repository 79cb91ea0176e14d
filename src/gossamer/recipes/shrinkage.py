"""Iterative shrinkage: train sparse from random weights, ranking at every step what is to go.

Until `pruning` of the run every optimiser step ends with a ranking of each layer by magnitude; the low weights are
shrunk (ISS-P), zeroed (ISS-H) or penalised (ISS-R) and may come back. Then the last ranking is the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ConfigError
from ..maths.schedules import Every, Linear, Schedule
from ..sparsify.estimators import Projected
from ..sparsify.groups import Select
from ..sparsify.lowest import RankLowest
from ..sparsify.patterns import NM, Pattern, Unstructured
from ..sparsify.recipe import Recipe
from ..sparsify.regularizers import L2
from ..sparsify.weight_ops import HardZero, Shrink

ALPHA = 0.95  # the authors' factor, at 100,000 pruning steps
PRUNING = 1 / 3  # the authors' 100,000 of 300,000 steps
LIMIT = 0.5  # the authors' largest penalty of ISS-R


def _iterative(
    name: str,
    sparsity: float | Schedule,
    pruning: float,
    select: Select,
    pattern: Pattern,
    sample: int | None,
) -> Recipe:
    if not 0.0 < pruning < 1.0:
        raise ConfigError(f"pruning is the fraction of the run before the mask is final, in (0, 1), got {pruning}")
    rank = RankLowest(sparsity, sample=sample, when=Every(1, stop=pruning))
    return Recipe(name, select, pattern, family=Projected(mask_grad=False, freeze=pruning), updates=(rank,))


def iss_p(
    sparsity: float | Schedule = 0.9,
    alpha: float = ALPHA,
    pruning: float = PRUNING,
    *,
    half_life: float | None = None,
    select: Select = Select(),
    pattern: Pattern = Unstructured(),
    sample: int | None = None,
) -> Recipe:
    """ISS-P: low weights are multiplied by alpha at every step (Wang et al. 2023).

    Args:
        sparsity: of every layer. alpha: 0 is ISS-H, 1 trains dense until the mask is final.
        pruning: fraction of the run after which the mask is final.
        half_life: optimiser steps in which a low weight halves, in place of alpha; alpha 0.95 is 13.5 steps.
        sample: see `RankLowest`.
    Raises:
        ConfigError: alpha outside [0, 1], half_life <= 0, sparsity outside [0, 1) or pruning outside (0, 1).
    """
    if half_life is not None and not half_life > 0:
        raise ConfigError(f"half_life is a positive number of optimiser steps, got {half_life}")
    shrink = Shrink(alpha) if half_life is None else Shrink.half_life(half_life)
    return _iterative("iss-p", sparsity, pruning, select, pattern, sample).replace(weight_ops=(shrink,))


def iss_h(
    sparsity: float | Schedule = 0.9,
    pruning: float = PRUNING,
    *,
    select: Select = Select(),
    pattern: Pattern = Unstructured(),
    sample: int | None = None,
) -> Recipe:
    """ISS-H, iterative hard thresholding: low weights become 0 at every step; their gradients may bring them back."""
    return _iterative("iss-h", sparsity, pruning, select, pattern, sample).replace(weight_ops=(HardZero(),))


def iss_r(
    sparsity: float | Schedule = 0.9,
    limit: float = LIMIT,
    pruning: float = PRUNING,
    *,
    select: Select = Select(),
    pattern: Pattern = Unstructured(),
    sample: int | None = None,
) -> Recipe:
    """ISS-R: low weights feel an L2 penalty that grows from 0 to `limit` over the pruning part of the run.

    A weight that rises leaves its penalty behind; in the authors' code the penalty of each weight is counted and stays.

    Raises:
        ConfigError: a limit that is not a positive number; else as `iss_p`.
    """
    if not 0 < limit < math.inf:
        raise ConfigError(f"the largest penalty of ISS-R must be a positive number, got {limit}")
    penalty = L2(Linear(0.0, limit, 0.0, pruning), where="pruned")
    return _iterative("iss-r", sparsity, pruning, select, pattern, sample).replace(regularizers=(penalty,))


def scratch(sparsity: float = 0.9, *, select: Select = Select(), pattern: Pattern = Unstructured()) -> Recipe:
    """One ranking before training, mask fixed: of random weights the scratch baseline, of trained ones L1-norm."""
    return Recipe("scratch", select, pattern, updates=(RankLowest(sparsity, when=None),))


# ---------------------------------------------------------------------- choosing alpha


def rescaled(alpha: float, reference: int, steps: int) -> float:
    """The factor that shrinks as much in `steps` steps as alpha does in `reference` steps.

    >>> round(rescaled(0.95, 100_000, 1_000), 4)
    0.0059
    """
    if not 0.0 <= alpha <= 1.0 or reference < 1 or steps < 1:
        raise ConfigError(f"needs 0 <= alpha <= 1 and steps >= 1, got alpha={alpha}, {reference} and {steps} steps")
    return alpha ** (reference / steps)


def alpha_for(lr: float, threshold: float, share: float = 0.2) -> float:
    """The largest alpha at which low weights settle below `share` of the threshold that kept ones pass.

    A low weight settles near step / (1 - alpha), with Adam step = lr. Above a fifth of the threshold the low weights
    do part of the work, and the loss jumps when the mask becomes final.

    >>> round(alpha_for(2e-3, 0.05), 6)
    0.8
    """
    if not (lr > 0 and threshold > 0 and 0 < share <= 1):
        raise ConfigError(f"needs lr > 0, threshold > 0 and 0 < share <= 1, got {lr}, {threshold}, {share}")
    return max(0.0, 1.0 - lr / (share * threshold))


def adjusted_nm(pruned: int, group: int, lengths: list[int]) -> NM:
    """The N:M pattern that prunes `pruned` of `group` weights, both raised by 1 until the group divides every length.

    Args:
        lengths: weights in one output of each layer, flattened.
    Raises:
        ConfigError: bad numbers, or a group longer than the greatest common divisor, which no raising can mend.

    >>> adjusted_nm(19, 20, [180]).m, adjusted_nm(3, 5, [12]).m
    (20, 6)
    """
    if not 0 <= pruned < group or not lengths:
        raise ConfigError(f"pruning {pruned} of {group} weights over {len(lengths)} layers is no N:M pattern")
    common, m = math.gcd(*lengths), group
    while m <= common and common % m:
        m += 1
    if m > common:
        raise ConfigError(
            f"groups of {group} do not fit: the layers' outputs have {sorted(set(lengths))} weights, "
            f"whose greatest common divisor is {common}"
        )
    return NM(group - pruned, m, layout="oihw_flat")


# ---------------------------------------------------------------------- what freezing costs


@torch.no_grad()
def jump_at_freeze(
    model: nn.Module, masks: Mapping[str, Tensor], loss: Callable[[Callable[..., Tensor]], Tensor]
) -> dict[str, float]:
    """What happens if the low weights become 0 now: the loss before and after, and how large they are.

    Args:
        masks: parameter name -> mask (True = kept). loss: takes a callable like the model, gives a scalar.
    Returns:
        {"before", "after": the losses, "ratio": largest low weight over smallest kept one, over all layers}.
    """
    parameters = dict(model.named_parameters())
    pruned = {name: torch.where(mask, parameters[name], 0.0) for name, mask in masks.items()}
    ratios = [
        float(parameters[name][~mask].abs().max() / parameters[name][mask].abs().min())
        for name, mask in masks.items()
        if bool(mask.any()) and not bool(mask.all())
    ]
    after = loss(lambda *inputs: functional_call(model, pruned, inputs))
    return {"before": float(loss(model)), "after": float(after), "ratio": max(ratios, default=0.0)}
