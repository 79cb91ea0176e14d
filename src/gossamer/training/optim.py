"""Optimisers and learning-rate schedules by name. A schedule is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from gossamer.errors import ConfigError, unknown
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

    The first step of a warm-up is not 0; milestones count from the run's start.

    >>> [lr_factor(s, 4, OptimConfig(schedule="linear")) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if config.begin:
        whole = round(steps / (1 - config.begin))
        step, steps = step + whole - steps, whole
    warmup = round(config.warmup * steps)
    if step < warmup:
        rise = (step + 1) / (warmup + 1)
        return (1 - math.cos(math.pi * rise)) / 2 if config.warmup_shape == "cosine" else rise
    if config.schedule == "step":
        return SCHEDULES["step"](step / steps, config)
    time = (step - warmup) / max(steps - warmup, 1)
    return SCHEDULES[config.schedule](max(time - config.hold, 0.0) / (1 - config.hold), config)


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times the one that it was made with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


def _warmed(optim: OptimConfig, **changes: Any) -> OptimConfig:
    """`optim` from its highest rate on, after a warm-up of a tenth of the run."""
    return optim.model_copy(update={"warmup": 0.1, "warmup_shape": "cosine", "begin": 0.0, "hold": 0.0} | changes)


def _fine_tuning(optim: OptimConfig, steps: int, before: int) -> OptimConfig:
    last = optim.lr * lr_factor(before - 1, before, optim)
    return optim.model_copy(update={"lr": last, "schedule": "constant", "warmup": 0.0, "begin": 0.0, "hold": 0.0})


def _rewinding(optim: OptimConfig, steps: int, before: int) -> OptimConfig:
    if steps > before:
        raise ConfigError(f"cannot rewind the learning rate by {steps} steps: the schedule had {before}")
    return optim.model_copy(update={"begin": 1 - steps / before})


# Name -> (configuration of the first training, steps of the retraining, steps of the first) -> configuration.
RETRAINING: dict[str, Callable[[OptimConfig, int, int], OptimConfig]] = {
    "ft": _fine_tuning,
    "lrw": _rewinding,
    "slr": lambda o, steps, before: _warmed(o, hold=o.warmup),
    "clr": lambda o, steps, before: _warmed(o, schedule="cosine"),
    "llr": lambda o, steps, before: _warmed(o, schedule="linear", final=0.0),
    "allr": lambda o, steps, before: _warmed(o, schedule="linear", final=0.0),
}


def retraining(schedule: str, optim: OptimConfig, steps: int, before: int) -> OptimConfig:
    """Optimiser settings for training again after pruning, from those of the first training.

    Args:
        schedule: "ft": the last rate, constant; "lrw": the last `steps` steps of the first schedule again; "slr": the
            whole first schedule, compressed, the highest rate in place of its warm-up; "clr": a cosine from the
            highest rate to the lowest; "llr": a straight line from the highest rate to 0; "allr": "llr" from a rate
            that `adaptive_factor` lowers. All but "ft" and "lrw" begin with a cosine-shaped warm-up of a tenth.
        steps: of the retraining. before: of the first training.
    Raises:
        ConfigError: an unknown schedule (the nearest is named), or "lrw" of more steps than there were.
    Source: Renda et al. 2020 (ft, lrw); Le & Hua 2021 (slr, clr); Zimmer et al. 2023 (llr, allr).
    """
    if schedule not in RETRAINING:
        raise unknown("retraining schedule", schedule, RETRAINING)
    return RETRAINING[schedule](optim, steps, before)


def adaptive_factor(norm: float, pruned_norm: float, fraction: float, steps: int, before: int) -> float:
    """What "allr" multiplies the highest rate by: the relative drop of the norm, over sqrt(fraction), clipped.

    Args:
        norm, pruned_norm: 2-norms of the weights before and after pruning. fraction: of the weights that were pruned.
        steps, before: of the retraining and of the first training; their ratio is the lower bound, 1 the upper.

    >>> round(adaptive_factor(5.0, 4.0, 0.5, 10, 100), 4)  # weights 3 and 4, the 3 is pruned: 0.6 / sqrt(0.5)
    0.8485
    """
    drop = math.sqrt(max(norm**2 - pruned_norm**2, 0.0)) / norm / math.sqrt(fraction) if norm and fraction else 0.0
    return min(max(drop, min(1.0, steps / before)), 1.0)
