"""Regularisers: terms added to gradients after backward, each with its own selection of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..maths.schedules import Constant, Schedule

WHERE = ("all", "kept", "pruned")


@runtime_checkable
class Regularizer(Protocol):
    """Adds a term to `.grad` of the parameters it selects."""

    def add(self, model: nn.Module, masks: Mapping[str, Tensor], time: float) -> None: ...


def _part(where: str, mask: Tensor | None, term: Tensor) -> Tensor:
    """The term on all, kept or pruned entries; a parameter without a mask is all kept."""
    if where == "all":
        return term
    if mask is None:
        return term if where == "kept" else torch.zeros_like(term)
    return torch.where(mask if where == "kept" else ~mask, term, torch.zeros_like(term))


def _check_where(where: str) -> None:
    if where not in WHERE:
        raise ConfigError(f"a regulariser acts on {WHERE}, got {where!r}")


@dataclass(frozen=True)
class _Norm:
    lam: float | Schedule = 1e-4
    where: str = "all"
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        _check_where(self.where)

    def strength(self, time: float) -> float:
        return self.lam if isinstance(self.lam, (int, float)) else self.lam(time)

    def term(self, w: Tensor) -> Tensor:
        raise AssertionError

    @torch.no_grad()
    def add(self, model: nn.Module, masks: Mapping[str, Tensor], time: float) -> None:
        lam = self.strength(time)
        for name, p in model.named_parameters():
            if p.grad is not None and any(fnmatchcase(name, g) for g in self.only):
                p.grad.add_(_part(self.where, masks.get(name), self.term(p)), alpha=lam)


@dataclass(frozen=True)
class L1(_Norm):
    """lam |w|: adds lam sign(w). Covers biases and norms unless `only` says otherwise (l1-sparse unlearning)."""

    def term(self, w: Tensor) -> Tensor:
        return w.sign()


@dataclass(frozen=True)
class L2(_Norm):
    """lam w^2 / 2: adds lam w. A growing schedule on the pruned part is GReg (Wang et al. 2021)."""

    def term(self, w: Tensor) -> Tensor:
        return w


@dataclass(frozen=True)
class BNL1:
    """lam |gamma| on the scales of batch norms, never on beta (network slimming, Liu et al. 2017; with
    where="pruned" it is MaskSparsity).

    Args:
        smooth: Huber width: |gamma| below it is quadratic (None: plain sign).
    """

    lam: float | Schedule = field(default_factory=lambda: Constant(1e-4))
    where: str = "all"
    smooth: float | None = None

    def __post_init__(self) -> None:
        _check_where(self.where)

    @torch.no_grad()
    def add(self, model: nn.Module, masks: Mapping[str, Tensor], time: float) -> None:
        lam = self.lam if isinstance(self.lam, (int, float)) else self.lam(time)
        for path, module in model.named_modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.weight is None:
                continue
            gamma = module.weight
            if gamma.grad is None:
                continue
            term = gamma.sign() if self.smooth is None else (gamma / self.smooth).clamp(-1, 1)
            gamma.grad.add_(_part(self.where, masks.get(f"{path}.weight" if path else "weight"), term), alpha=lam)
