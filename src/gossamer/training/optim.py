"""Optimisers and learning-rate schedules by name. A schedule is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from gossamer.training.config import OptimConfig

Parameters = Iterable[Any]  # tensors, or groups with their own settings, as torch's optimisers take them


def _sgd(parameters: Parameters, c: OptimConfig) -> Optimizer:
    return SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


def _nesterov(parameters: Parameters, c: OptimConfig) -> Optimizer:
    return SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, nesterov=True)


def _adam(parameters: Parameters, c: OptimConfig) -> Optimizer:
    return Adam(parameters, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)


def _adamw(parameters: Parameters, c: OptimConfig) -> Optimizer:
    return AdamW(parameters, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)


def _rmsprop(parameters: Parameters, c: OptimConfig) -> Optimizer:
    return RMSprop(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


OPTIMIZERS: dict[str, Callable[[Parameters, OptimConfig], Optimizer]] = {
    "sgd": _sgd,
    "nesterov": _nesterov,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
}


def make_optimizer(parameters: Parameters, config: OptimConfig) -> Optimizer:
    """The optimiser that `config` names, over `parameters`."""
    return OPTIMIZERS[config.name](parameters, config)


# Each maps the fraction of the run after the warm-up, in [0, 1], to a factor of the learning rate.
SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {
    "constant": lambda t, c: 1.0,
    "linear": lambda t, c: 1 + (c.final - 1) * t,
    "cosine": lambda t, c: c.final + (1 - c.final) * (1 + math.cos(math.pi * t)) / 2,
    "step": lambda t, c: c.gamma ** sum(t >= milestone for milestone in c.milestones),
}


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """What the learning rate is multiplied by at optimiser step `step` (from 0) of `steps`.

    The warm-up rises in a straight line, and its first step is not 0; milestones count from the run's start.

    >>> [lr_factor(s, 4, OptimConfig(schedule="linear")) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return SCHEDULES["step"](step / steps, config)
    return SCHEDULES[config.schedule]((step - warmup) / max(steps - warmup, 1), config)


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times the one that it was made with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
