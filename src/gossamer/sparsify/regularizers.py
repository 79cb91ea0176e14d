"""Regularisers: terms added to gradients after backward, each with its own selection of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError, unknown
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
    """lam |gamma| on the scales of batch norms, never on beta (network slimming, Liu et al. 2017; on the scales of the
    channels that will be removed it is MaskSparsity, Jiang et al. 2022).

    Args:
        where: "all", "kept" or "pruned" scales, by the Sparsifier's masks.
        smooth: Huber width: |gamma| below it is quadratic (None: plain sign). Above every scale it is an L2 penalty.
        channels: rows (name of a scale, one digit for each channel, "1" = penalised): only these scales, whatever
            the masks. `channel_rows` writes them.
        proximal: soft-threshold by lr lam after the step instead, which ends in exact zeros.
    Raises:
        ConfigError: lam < 0, proximal with smooth, or digits other than 0 and 1. When it acts: a name that is no
            scale of a batch norm, no scale at all, or no gradients (backward did not come first). ShapeError: a row
            that does not fit its scale.
    """

    lam: float | Schedule = field(default_factory=lambda: Constant(1e-4))
    where: str = "all"
    smooth: float | None = None
    channels: tuple[tuple[str, str], ...] | None = None
    proximal: bool = False

    def __post_init__(self) -> None:
        _check_where(self.where)
        if isinstance(self.lam, (int, float)) and not self.lam >= 0:
            raise ConfigError(f"the strength of a penalty must not be negative, got lam={self.lam}")
        if self.proximal and self.smooth is not None:
            raise ConfigError("a proximal step has no smooth form: drop one of proximal and smooth")
        for name, digits in self.channels or ():
            if set(digits) - {"0", "1"}:
                raise ConfigError(f"channels of {name} are a row of 0 and 1, got {digits[:20]!r}")

    def strength(self, time: float) -> float:
        return self.lam if isinstance(self.lam, (int, float)) else float(self.lam(time))

    @torch.no_grad()
    def add(self, model: nn.Module, masks: Mapping[str, Tensor], time: float) -> None:
        scales = self._scales(model, masks)
        if all(gamma.grad is None for gamma, _ in scales) and any(gamma.requires_grad for gamma, _ in scales):
            raise ConfigError("no batch-norm scale has a gradient: call backward before the penalty is added")
        for gamma, part in scales:
            if gamma.grad is not None and not self.proximal:
                term = gamma.sign() if self.smooth is None else (gamma / self.smooth).clamp(-1, 1)
                gamma.grad.add_(torch.where(part, term, torch.zeros_like(term)), alpha=self.strength(time))

    @torch.no_grad()
    def after_step(
        self, model: nn.Module, masks: Mapping[str, Tensor], time: float, rate: Callable[[Tensor], float]
    ) -> None:
        """The proximal step, where that is asked for. rate: learning rate of a parameter."""
        if self.proximal:
            for gamma, part in self._scales(model, masks):
                bound = rate(gamma) * self.strength(time)
                gamma.copy_(torch.where(part, gamma.sign() * (gamma.abs() - bound).clamp_min(0), gamma))

    def _scales(self, model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
        """Scales with what of them is penalised (bool)."""
        found: dict[str, nn.Parameter] = {
            f"{path}.weight" if path else "weight": module.weight
            for path, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None
        }
        if not found:
            raise ConfigError(f"{type(model).__name__} has no batch-norm scale to regularise")
        if self.channels is None:
            return [(gamma, _part_mask(self.where, masks.get(name), gamma)) for name, gamma in found.items()]
        rows = []
        for name, digits in self.channels:
            if name not in found:
                raise unknown("batch-norm scale", name, found)
            if len(digits) != len(found[name]):
                raise ShapeError(f"{name} has {len(found[name])} channels, its row has {len(digits)} digits")
            rows.append((found[name], _digits(digits).to(found[name].device)))
        return rows


def _part_mask(where: str, mask: Tensor | None, like: Tensor) -> Tensor:
    """Which entries are all, kept or pruned; without a mask all are kept."""
    kept = torch.ones_like(like, dtype=torch.bool) if mask is None else mask
    return torch.ones_like(kept) if where == "all" else kept if where == "kept" else ~kept


@cache
def _digits(text: str) -> Tensor:
    return torch.tensor([digit == "1" for digit in text])
