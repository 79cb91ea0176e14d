"""Training of a policy on an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...errors import ConfigError, NumericsError
from .balance import Flow, loss
from .memory import Memory, Oracle
from .order import warn_without_signal
from .policies import _Policy
from .rollout import backward, sample


@dataclass(frozen=True)
class Training:
    """How long and how: the defaults are the paper's of the grids, with tables instead of networks.

    Args:
        steps, batch: optimiser steps and trajectories in each. lr, lr_z: of Adam. explore: random actions.
        replay: share of each batch drawn by P_B from the best objects seen. clip: largest gradient norm; None: none.
    Raises:
        ConfigError: a value out of range.
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 0.1
    lr_z: float = 0.1
    explore: float = 0.05
    replay: float = 0.0
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0 or self.lr_z <= 0:
            raise ConfigError(
                f"steps and batch must be at least 1 and rates positive, got {self.steps}, {self.batch}, {self.lr}, "
                f"{self.lr_z}"
            )
        if not (0 <= self.explore <= 1 and 0 <= self.replay <= 1):
            raise ConfigError(f"explore and replay are shares in [0, 1], got {self.explore} and {self.replay}")


def fit(
    policy: _Policy,
    oracle: Oracle,
    flow: Flow = Flow(),
    training: Training = Training(),
    say: Callable[[int, float], None] = lambda step, loss: None,
) -> _Policy:
    """Train a policy on an objective (states (n, width) -> scores (n,) or (n, k), larger is better).

    Raises:
        NumericsError: a score or the loss is not finite. ConfigError: a batch of one under an order, or a reward that
            is not positive without one. ShapeError: scores change their number.
    """
    rng = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.Adam(policy.groups(training.lr, training.lr_z))
    memory = Memory()
    for step in range(training.steps):
        rollout = sample(policy, training.batch, rng, training.explore)
        memory.add(rollout.last, oracle)
        if step == 0:
            warn_without_signal(memory.of(rollout.last))
        batches = [rollout]
        if training.replay > 0 and step:
            count = max(1, round(training.replay * training.batch))
            batches.append(backward(policy, memory.best(count, rng), rng))
        value = torch.stack([loss(policy, batch, memory, flow, rng) for batch in batches]).mean()
        if not bool(torch.isfinite(value)):
            raise NumericsError(f"the loss is {float(value.detach())} at step {step}; lower the learning rate")
        optimizer.zero_grad()
        value.backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), training.clip)
        optimizer.step()
        say(step, float(value.detach()))
    return policy
