"""Weight operations: what happens to the weights after every optimiser step, given the present mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ConfigError


@runtime_checkable
class WeightOp(Protocol):
    """An in-place operation on a weight."""

    def __call__(self, w: Tensor, mask: Tensor) -> None: ...


@dataclass(frozen=True)
class HardZero:
    """w = 0 off the mask (iterative hard thresholding)."""

    @torch.no_grad()
    def __call__(self, w: Tensor, mask: Tensor) -> None:
        w.masked_fill_(~mask, 0.0)


@dataclass(frozen=True)
class Shrink:
    """w *= alpha off the mask (ISS-P, alpha = 0.95). alpha = 0 is HardZero, alpha = 1 does nothing."""

    alpha: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"shrink needs 0 <= alpha <= 1, got {self.alpha}")

    @torch.no_grad()
    def __call__(self, w: Tensor, mask: Tensor) -> None:
        if self.alpha == 0.0:
            w.masked_fill_(~mask, 0.0)
        elif self.alpha < 1.0:
            w.copy_(torch.where(mask, w, w * self.alpha))

    @staticmethod
    def half_life(steps: float) -> Shrink:
        """The shrinkage that halves a pruned weight in `steps` optimiser steps, whatever the number of batches."""
        return Shrink(math.pow(0.5, 1.0 / steps))


@dataclass(frozen=True)
class SoftThreshold:
    """w = sign(w) max(|w| - tau, 0), everywhere (the proximal step of an L1 norm)."""

    tau: float = 1e-4

    @torch.no_grad()
    def __call__(self, w: Tensor, mask: Tensor) -> None:
        w.copy_(torch.sign(w) * (w.abs() - self.tau).clamp_min(0.0))
