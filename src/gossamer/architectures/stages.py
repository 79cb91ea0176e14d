"""Stages of training a network of scored layers: dense, pruning by scores, fine-tuning; alone or inside a search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from ..errors import ConfigError, NumericsError
from ..training.config import OptimConfig
from ..training.optim import lr_factor, make_optimizer, set_lr
from .scored_layers import refresh, scaled_init, set_keep, train_scores

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]
BatchOf = Callable[[int], Batch]  # optimiser step -> batch

WEIGHTS = OptimConfig(lr=0.025, momentum=0.9, weight_decay=1e-3, schedule="cosine", final=0.04)
SCORES = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.0, schedule="cosine")


@dataclass(frozen=True)
class Stage:
    """One part of the search.

    Args:
        name: "pretrain", "prune", "finetune", or any other. steps: optimiser steps.
        keep: share of each layer's weights that is seen. train: "weights" or "scores"; the other is frozen, and
            scores begin anew from the magnitudes where they are trained. arch: whether the architecture is updated.
        optim: of weights or scores; released are 0.025 down to 0.001 for weights, 0.1 for scores.
    """

    name: str
    steps: int
    keep: float = 1.0
    train: Literal["weights", "scores"] = "weights"
    arch: bool = True
    optim: OptimConfig = field(default_factory=lambda: WEIGHTS)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"stage {self.name!r} needs at least 1 step, got {self.steps}")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"stage {self.name!r}: keep must lie in (0, 1], got {self.keep}")
        if self.train not in ("weights", "scores"):
            raise ConfigError(f"stage {self.name!r} trains 'weights' or 'scores', not {self.train!r}")


def dass_stages(
    keep: float = 0.01,
    steps: tuple[int, int, int] = (100, 50, 100),
    weights: OptimConfig = WEIGHTS,
    scores: OptimConfig = SCORES,
) -> tuple[Stage, ...]:
    """Pre-train dense, prune by scores, fine-tune sparse; `steps` of each (the authors' 100, 50 and 100 are epochs)."""
    return (
        Stage("pretrain", steps[0], optim=weights),
        Stage("prune", steps[1], keep, "scores", arch=False, optim=scores),
        Stage("finetune", steps[2], keep, optim=weights),
    )


def dense_stages(steps: int, weights: OptimConfig = WEIGHTS) -> tuple[Stage, ...]:
    """Ordinary DARTS: the control of equal length."""
    return (Stage("dense", steps, optim=weights),)


def train_stage(
    model: nn.Module, stage: Stage, loss: Loss, train: BatchOf, clip: float | None = 5.0
) -> list[tuple[int, float]]:
    """One stage of ordinary training of a network without alphas (retrain, prune, fine-tune). Returns (step, loss)."""
    set_keep(model, stage.keep)
    if stage.train == "scores":
        scaled_init(model)
    train_scores(model, stage.train == "scores")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, stage.optim)
    curve = []
    for step in range(stage.steps):
        set_lr(optimizer, lr_factor(step, stage.steps, stage.optim))
        value = loss(model, train(step))
        if not math.isfinite(float(value.detach())):
            raise NumericsError(f"the loss is {float(value.detach())} at step {step} of stage {stage.name!r}")
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        if step % max(1, stage.steps // 50) == 0:
            curve.append((step, float(value.detach())))
    refresh(model)
    train_scores(model, scores=False)
    return curve


def hydra_prune(
    model: nn.Module,
    keep: float,
    loss: Loss,
    train: BatchOf,
    steps: tuple[int, int],
    scores: OptimConfig = SCORES,
    weights: OptimConfig = WEIGHTS,
) -> list[tuple[int, float]]:
    """Prune a trained network of scored layers by learning its scores, then fine-tune the survivors (HYDRA).

    Args:
        keep: share of each layer's weights that stays. steps: of the scores, of the fine-tuning.
    Returns:
        (step, loss) over both parts.
    """
    first = train_stage(model, Stage("prune", steps[0], keep, "scores", False, scores), loss, train)
    last = train_stage(model, Stage("finetune", steps[1], keep, "weights", False, weights), loss, train)
    return [*first, *((steps[0] + step, value) for step, value in last)]
