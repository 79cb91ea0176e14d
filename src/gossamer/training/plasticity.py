"""Pruning plasticity: how much a network recovers when it is pruned at a given moment of its training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ConfigError
from ..maths.schedules import Constant, Every
from ..sparsify.allocation import Allocation, Global
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Gradient, Magnitude, Score
from ..sparsify.sparsifier import Sparsifier
from ..sparsify.updates import PruneGrow, SetTo, Update

Continue = Callable[[nn.Module, torch.optim.Optimizer], None]


@dataclass(frozen=True)
class Plasticity:
    """A metric (larger is better) before pruning, right after it, and after training on."""

    before: float
    pruned: float
    after: float

    @property
    def value(self) -> float:
        """after - before: positive where the pruned network trains past the whole one (Liu et al. 2021)."""
        return self.after - self.before


def plasticity(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_on: Continue,
    evaluate: Callable[[nn.Module], float],
    sparsity: float,
    steps: int,
    *,
    score: Score = Magnitude(),
    allocation: Allocation = Global(),
    regrow: float = 0.0,
    seed: int = 0,
) -> Plasticity:
    """Prune a partly trained network once, train on, and compare with the network as it was.

    Works on copies: model and optimiser (with their moments) stay as they are.

    Args:
        model, optimizer: a checkpoint of dense training; no Sparsifier is attached.
        train_on: takes (model, optimizer) and makes `steps` optimiser steps, its learning rate schedule continued.
        evaluate: metric of a model, larger is better.
        sparsity: fraction of weights pruned, in [0, 1).
        score, allocation: what is kept (Magnitude(), Random(); over all layers or within each).
        regrow: fraction of every layer's survivors that is swapped, after the first step, for as many zeros with
            the largest gradient; the number of weights stays.
        seed: of random scores.
    Raises:
        ConfigError: sparsity or regrow outside [0, 1), or `train_on` made another number of steps.
    """
    if not (0 <= sparsity < 1 and 0 <= regrow < 1):
        raise ConfigError(f"sparsity and regrow must lie in [0, 1), got {sparsity} and {regrow}")
    before = evaluate(model)
    copied, continued = copy.deepcopy((model, optimizer))  # together, so that the optimiser holds the new weights
    updates: list[Update] = [SetTo(score, 1 - sparsity, allocation)]
    if regrow:
        once = Every(1, stop=1 / steps)
        updates.append(PruneGrow(Constant(regrow), Magnitude(), Gradient(), once, rounding="ceil"))
    sparsifier = Sparsifier(copied, continued, Recipe("plasticity", updates=tuple(updates)), steps, seed=seed)
    pruned = evaluate(copied)
    train_on(copied, continued)
    if sparsifier.step != steps:
        raise ConfigError(f"train_on made {sparsifier.step} optimiser steps, {steps} were announced")
    sparsifier.finalize()
    return Plasticity(before, pruned, evaluate(copied))
