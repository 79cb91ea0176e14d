"""What scores and updates may look at: weights, masks, statistics, data. The Sparsifier builds it for each use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, NumericsError
from .groups import Group
from .patterns import Pattern

Batch = Any
Loss = Callable[[nn.Module, Batch], Tensor]


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of a batch (inputs, labels): the default loss of scores that need data."""
    inputs, labels = batch[0], batch[1]
    return F.cross_entropy(model(inputs), labels)


@dataclass
class Context:
    """The view that scores and updates have of a run at one step.

    Args:
        weights: parameter name -> tensor (masters under the effective family), detached.
        statistics: need ("grad", "grad_ema", "activations", ...) -> parameter name -> tensor; see statistics.py.
        masks: group name -> bool unit mask.
        within: whether pruning ranks only what is active now (true where the weight itself is 0 off the mask).
    """

    model: nn.Module
    groups: list[Group]
    patterns: dict[str, Pattern]
    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    statistics: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    step: int = 0
    steps: int = 1
    seed: int = 0
    data: Iterable[Batch] | None = None
    loss: Loss = classification_loss
    within: bool = True

    @property
    def time(self) -> float:
        """Fraction of the run that has passed."""
        return min(1.0, self.step / self.steps)

    def units(self, values: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Unit scores of all groups from entry scores of parameters."""
        return {group.name: group.reduce(values) for group in self.groups}

    def statistic(self, need: str, name: str) -> Tensor:
        """A collected statistic of a parameter, or an error that names both."""
        try:
            return self.statistics[need][name]
        except KeyError:
            raise ConfigError(
                f"{name} has no {need!r} at step {self.step}: it took no part in the backward pass, "
                f"is frozen, or its gradient was cleared before the optimiser's step"
            ) from None

    def rng(self, name: str) -> torch.Generator:
        """A generator that depends on (seed, step, name) only, so that order and rank do not matter."""
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def batches(self) -> Iterator[Batch]:
        """The calibration batches, from the first on."""
        if self.data is None:
            raise ConfigError("this score needs data: pass Sparsifier(..., data=loader)")
        return iter(self.data)

    def finite(self, scores: dict[str, Tensor], what: str) -> dict[str, Tensor]:
        """`scores`, or NumericsError naming the first tensor with a NaN or infinity."""
        for name, value in scores.items():
            # a finite sum proves it in one cheap pass; an infinite one may only be an overflow
            if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
                raise NumericsError(
                    f"{what} of {name} has NaN or infinite entries at step {self.step}; "
                    f"lower the learning rate or skip this step"
                )
        return scores


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run forward and backward passes on `model` without leaving a trace: buffers, gradients and RNG come back."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for name, b in model.named_buffers():
            b.data.copy_(buffers[name])
        for name, p in model.named_parameters():
            p.grad = gradients[name]
