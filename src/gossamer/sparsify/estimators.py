"""Families: what the forward pass sees and what reaches the weight. Three kinds, each a value.

projected: the weight itself is 0 off the mask; nothing wraps the forward pass.
effective: a dense master, the forward pass sees f(w, mask), installed by torch.nn.utils.parametrize.
scored: the mask is chosen by a trained score tensor; gradients reach it straight through.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import ConfigError
from ..kernels.masking import apply_mask_
from ..maths.schedules import Constant, Schedule
from .patterns import Pattern, Unstructured


@runtime_checkable
class Family(Protocol):
    """How weights, masks and gradients are tied together."""


@dataclass(frozen=True)
class Projected:
    """The weight is 0 outside the mask after every step.

    Args:
        mask_grad: gradients are masked, so weights and optimiser buffers stay 0 by themselves (static masks, dynamic
            sparse training, gradual pruning). False: dense steps followed by a weight operation (iterative hard
            thresholding, soft shrinkage); all weights are ranked, not only the active ones.
        freeze: with mask_grad False, the fraction of the run from which the mask is final and gradients are masked.
    """

    mask_grad: bool = True
    freeze: float | None = None

    def masks_gradient(self, time: float) -> bool:
        """Whether gradients are masked at this fraction of the run."""
        return self.mask_grad or (self.freeze is not None and time >= self.freeze)


@dataclass(frozen=True)
class STE:
    """Forward mask * w, gradient straight to w (Bengio et al. 2013)."""


@dataclass(frozen=True)
class SRSTE:
    """STE plus lam (1 - mask) w added to the gradient (Zhou et al. 2021, eq. 9).

    Weight decay acts on masters too: pruned ones feel (decay + lam) w, kept ones decay w.

    Args:
        lam: the authors' 2e-4.
        decoupled: w -= lr lam (1 - mask) w after the step instead, which adaptive optimisers do not rescale.
    """

    lam: float = 2e-4
    decoupled: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.lam):
            raise ConfigError(f"SR-STE needs a finite lambda, got {self.lam}")
        if self.lam < 0:
            warnings.warn(f"SR-STE with lambda {self.lam} < 0 pushes pruned weights up", stacklevel=3)

    def check(self, lr: float) -> None:
        """Warn where a step takes more than a tenth off pruned weights; ConfigError where it turns their sign."""
        if lr * self.lam >= 1:
            raise ConfigError(f"SR-STE needs lr * lambda < 1, got {lr} * {self.lam}: pruned weights would overshoot")
        if lr * self.lam > 0.1:
            warnings.warn(f"SR-STE: lr * lambda = {lr * self.lam:g} is more than 0.1", stacklevel=5)


@dataclass(frozen=True)
class SoftMask:
    """Forward (mask + s (1 - mask)) w with s from a schedule: 1 is dense, 0 is STE (progressive gradient flow).

    Args:
        soft: s over the run.
        exact_grad: multiply the gradient by the same factor; else it passes straight to w.
    """

    soft: Schedule = field(default_factory=lambda: Constant(0.0))
    exact_grad: bool = False


@dataclass(frozen=True)
class Scored:
    """mask = the `density` best of a trained score s; w gets the masked gradient, s the straight-through one.

    Args:
        density: kept fraction of every tensor.
        train: "both", "weights" or "scores".
        init: "magnitude" (|w|) or "random" (uniform) scores at the start.
    """

    density: float | Schedule = 0.5
    train: str = "both"
    init: str = "magnitude"

    def __post_init__(self) -> None:
        if self.train not in ("both", "weights", "scores"):
            raise ConfigError(f"scored: train must be 'both', 'weights' or 'scores', got {self.train!r}")
        if self.init not in ("magnitude", "random"):
            raise ConfigError(f"scored: init must be 'magnitude' or 'random', got {self.init!r}")


EFFECTIVE = (STE, SRSTE, SoftMask)


class _StraightThrough(torch.autograd.Function):
    """where(mask, w, 0) forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, mask: Tensor) -> Tensor:
        return apply_mask_(w.clone(), mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Soft(torch.autograd.Function):
    """where(mask, w, s w) forward; backward identity or the same factor."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, mask: Tensor, soft: Tensor, exact: bool) -> Tensor:
        ctx.exact = exact
        ctx.save_for_backward(mask, soft)
        return torch.where(mask, w, w * soft)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        mask, soft = ctx.saved_tensors
        return (torch.where(mask, grad, grad * soft) if ctx.exact else grad), None, None, None


class _ByScore(torch.autograd.Function):
    """where(mask, w, 0); w gets the masked gradient, the score gets grad * w."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(w, mask)
        return apply_mask_(w.clone(), mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        w, mask = ctx.saved_tensors
        return apply_mask_(grad.clone(), mask), grad * w, None


class MaskedForward(nn.Module):
    """The parametrisation of STE and SR-STE. `mask` is a buffer that updates write in place."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        return _StraightThrough.apply(w, self.mask)


class SoftForward(MaskedForward):
    """The parametrisation of SoftMask. `soft` is a 0-d buffer that the schedule writes in place."""

    soft: Tensor

    def __init__(self, mask: Tensor, soft: float, exact: bool) -> None:
        super().__init__(mask)
        self.register_buffer("soft", torch.tensor(soft, device=mask.device), persistent=False)
        self.exact = exact

    def forward(self, w: Tensor) -> Tensor:
        return _Soft.apply(w, self.mask, self.soft, self.exact)


class ScoredForward(MaskedForward):
    """The parametrisation of Scored: owns the trained score."""

    def __init__(self, mask: Tensor, score: Tensor, trained: bool) -> None:
        super().__init__(mask)
        self.score = nn.Parameter(score, requires_grad=trained)

    def forward(self, w: Tensor) -> Tensor:
        return _ByScore.apply(w, self.score, self.mask)


def initial_score(family: Scored, w: Tensor, rng: torch.Generator) -> Tensor:
    """The score tensor that training starts from: |w|, or uniform in [0, 1)."""
    if family.init == "magnitude":
        return w.detach().abs()
    return torch.rand(w.shape, generator=rng).to(w.device, w.dtype)


def score_mask(score: Tensor, density: float, pattern: Pattern = Unstructured()) -> Tensor:
    """The mask of the best |score|, with round(density * numel) survivors where the pattern leaves that free."""
    if pattern.fixed(tuple(score.shape)) is not None:
        return pattern.project(score.abs())
    cell = pattern.cell(tuple(score.shape))
    keep = max(1, int(density * score.numel() / cell + 0.5)) * cell
    return pattern.project(score.abs(), keep)


def install(model: nn.Module, parameter: str, forward: MaskedForward) -> None:
    """Make `parameter` the master of an effective weight. The optimiser keeps its Parameter object."""
    path, _, attr = parameter.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(path), attr, forward, unsafe=True)


def master(model: nn.Module, parameter: str) -> nn.Parameter:
    """The trained tensor behind a weight: the dense master of an effective family, else the weight itself."""
    path, _, attr = parameter.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attr):
        module, attr = module.parametrizations[attr], "original"  # type: ignore[index, assignment]
    return getattr(module, attr)


def uninstall(model: nn.Module, parameter: str) -> None:
    """Bake the effective weight into a plain parameter of the same name."""
    path, _, attr = parameter.rpartition(".")
    module = model.get_submodule(path)
    kind = type(module)  # deep copies share the class that torch is about to take the weight from
    module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    parametrize.remove_parametrizations(module, attr, leave_parametrized=True)
