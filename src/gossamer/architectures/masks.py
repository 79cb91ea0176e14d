"""Sub-networks of an over-parameterised parent as search spaces: which nodes, which weights, which N:M pattern.

Each holds one parent; an architecture becomes masks by `masks`, and `hold` makes a model live with them: what is
masked is 0, gets no gradient, and therefore stays 0 under every torch optimiser.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, MaskError, ShapeError, unknown
from ..sparsify.allocation import ER, ERK, Allocation, Uniform
from ..sparsify.channels import ChannelGraph, channel_graph
from ..sparsify.groups import Group, Select, entry_masks, select
from ..sparsify.patterns import Unstructured
from .slots import OneOf, Subset
from .space import Architecture, SearchSpace

Masks = dict[str, Tensor]
ALLOCATIONS: dict[str, Allocation] = {"uniform": Uniform(), "er": ER(), "erk": ERK()}
NARROW = 8  # surviving nodes below which the signal collapses at initialisation (measured)


@dataclass(frozen=True)
class MaskSpace:
    """A search space whose architectures are masks of one parent's parameters.

    Args:
        space: the decisions. make: architecture -> masks, parameter name -> bool tensor (True = kept).
        widths: kept nodes of each group, for a space of nodes.
        graph: the parent's coupled channels, for a space of nodes.
    """

    space: SearchSpace
    make: Callable[[Architecture], Masks]
    widths: Mapping[str, int] | None = None
    graph: ChannelGraph | None = None

    def masks(self, architecture: Architecture) -> Masks:
        """Masks of an architecture, checked against the space."""
        return self.make(self.space.check(architecture))

    def units(self, architecture: Architecture) -> Masks:
        """Node masks by group, as `sparsify.surgery.remove_channels` takes them.

        Raises:
            ConfigError: a space of other things than nodes.
        """
        if self.graph is None:
            raise ConfigError(f"{self.space.name} does not choose nodes, so nothing can be cut out of the network")
        return _unit_masks(self.space, architecture)

    @staticmethod
    def nodes(model: nn.Module, example: Any, sparsity: float, only: tuple[str, ...] = ()) -> MaskSpace:
        """Which hidden nodes (units of linear layers, channels of convolutions) exist: exact counts per layer.

        Inputs and outputs are never masked; channels that are coupled (residual sums) live or go together.

        Args:
            model: the parent. example: one input, to follow its channels.
            sparsity: fraction of the nodes of every group that is masked; round((1 - sparsity) n) stay.
            only: names of the groups to search; empty: all there are.
        Raises:
            ConfigError: a sparsity outside [0, 1) or one that leaves no node (the largest possible one is named);
                `only` names the output layer, whose nodes must stay, or no group.
        """
        _check_sparsity(sparsity)
        graph = channel_graph(model, example)
        groups = [graph.group(name) for name in only] or list(graph.groups)
        if not groups:
            raise ConfigError(f"{type(model).__name__} has no hidden node that may go: {graph.refused}")
        for group in groups:
            if _kept(group.numel, sparsity) < 1:
                raise ConfigError(
                    f"sparsity {sparsity} leaves none of the {group.numel} nodes of {group.name}; "
                    f"the largest that leaves one is {1 - 0.5 / group.numel:.6g}"
                )
        slots = tuple(Subset(group.name, group.numel, _kept(group.numel, sparsity)) for group in groups)
        narrow = [slot for slot in slots if slot.keep < min(NARROW, slot.of)]
        if narrow:
            warnings.warn(
                f"{narrow[0].keep} nodes of {narrow[0].name} survive, fewer than {NARROW}: sub-networks may be dead at "
                "initialisation, and a search then finds those that are not",
                stacklevel=2,
            )
        space = SearchSpace(slots, name="the space of nodes")
        shapes = {name: torch.empty(()).expand(p.shape) for name, p in model.named_parameters()}

        def make(architecture: Architecture) -> Masks:
            return entry_masks(list(groups), _unit_masks(space, architecture), shapes)

        return MaskSpace(space, make, {slot.name: slot.keep for slot in slots}, graph)

    @staticmethod
    def weights(model: nn.Module, sparsity: float, allocation: str = "uniform", which: Select = Select()) -> MaskSpace:
        """Which weights exist: exact counts per layer, shared out by "uniform", "er" or "erk"."""
        _check_sparsity(sparsity)
        if allocation not in ALLOCATIONS:
            raise unknown("allocation", allocation, ALLOCATIONS)
        groups = select(model, which)
        densities = ALLOCATIONS[allocation].densities({g.name: g.shape for g in groups}, 1 - sparsity)
        slots = tuple(Subset(g.name, g.numel, max(1, round(densities[g.name] * g.numel))) for g in groups)
        return _of_entries(SearchSpace(slots, name="the space of weights"), groups)

    @staticmethod
    def nm(model: nn.Module, n: int, m: int, which: Select = Select()) -> MaskSpace:
        """Which n of every m neighbouring inputs of a weight exist.

        Raises:
            ShapeError: m does not divide the last axis of a weight.
        """
        groups = select(model, which)
        for group in groups:
            if group.shape[-1] % m:
                raise ShapeError(f"{n}:{m} needs a last axis divisible by {m}, but {group.name} has {group.shape}")
        slots = tuple(Subset(g.name, g.numel, n, blocks=g.numel // m) for g in groups)
        return _of_entries(SearchSpace(slots, name=f"the space of {n}:{m} patterns"), groups)

    @staticmethod
    def ratios(
        model: nn.Module, densities: tuple[float, ...], budget: float | None = None, which: Select = Select()
    ) -> MaskSpace:
        """Which density each layer has; its largest weights survive.

        Args:
            densities: what a layer may choose from. budget: densest legal network as a fraction of its weights.
        """
        groups = select(model, which)
        parameters = dict(model.named_parameters())
        options = tuple(f"{density:g}" for density in densities)
        total = sum(group.numel for group in groups)

        def affordable(architecture: Architecture) -> bool:
            kept = sum(densities[int(i)] * g.numel for i, g in zip(architecture, groups, strict=True))  # type: ignore[arg-type, misc]
            return bool(budget is None or kept <= budget * total)

        def make(architecture: Architecture) -> Masks:
            return {
                g.name: Unstructured().project(
                    parameters[g.name].detach().abs(),
                    max(1, round(densities[int(i)] * g.numel)),  # type: ignore[arg-type]
                )
                for i, g in zip(architecture, groups, strict=True)
            }

        slots = tuple(OneOf(group.name, options) for group in groups)
        rule = None if budget is None else affordable
        return MaskSpace(SearchSpace(slots, rule, name="the space of layer densities"), make)


def _check_sparsity(sparsity: float) -> None:
    if not (math.isfinite(sparsity) and 0 <= sparsity < 1):
        raise ConfigError(f"sparsity must lie in [0, 1), got {sparsity}")


def _kept(units: int, sparsity: float) -> int:
    """round((1 - s) n), halves up; tolerant of float error in 1 - s."""
    return math.floor((1 - sparsity) * units + 0.5 + 1e-9)


def _unit_masks(space: SearchSpace, architecture: Architecture) -> Masks:
    pairs = zip(space.slots, architecture, strict=True)
    return {slot.name: torch.from_numpy(slot.encode(value).astype(np.bool_)) for slot, value in pairs}  # type: ignore[arg-type]


def _of_entries(space: SearchSpace, groups: list[Group]) -> MaskSpace:
    def make(architecture: Architecture) -> Masks:
        units = _unit_masks(space, architecture)
        return {group.name: units[group.name].view(group.shape) for group in groups}

    return MaskSpace(space, make)


# --------------------------------------------------------------------------- a model under masks


def masked(weight: Tensor, mask: Tensor, fan_in: str = "dense") -> Tensor:
    """A new tensor: `weight` where the mask holds, 0 elsewhere.

    Args:
        fan_in: "dense" leaves survivors as they are; "surviving" multiplies those of a matrix by
            sqrt(inputs / surviving inputs), which turns an initialisation by fan-in (He) into one by the surviving
            fan-in.
    Raises:
        MaskError: nothing survives. ConfigError: an unknown `fan_in`.
    """
    if fan_in not in ("dense", "surviving"):
        raise unknown("fan_in", fan_in, ("dense", "surviving"))
    if not bool(mask.any()):
        raise MaskError("the mask keeps nothing")
    out = weight.detach().masked_fill(~mask.to(weight.device), 0)
    if fan_in == "surviving" and weight.ndim > 1:
        rows = mask.flatten(1).sum(1)
        out *= math.sqrt(mask[0].numel() / float(rows[rows > 0].double().mean()))
    return out


def apply_masks(model: nn.Module, masks: Masks, *, fan_in: str = "dense") -> None:
    """Mask parameters in place; see `masked`. Raises ShapeError for a mask that fits no parameter."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ShapeError(f"a mask of shape {tuple(mask.shape)} fits no parameter {name!r}")
        with torch.no_grad():
            parameters[name].copy_(masked(parameters[name], mask, fan_in))


@contextmanager
def hold(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Inside, masked entries get no gradient: zeros stay zeros through momentum and weight decay."""
    parameters = dict(model.named_parameters())
    kept = {name: mask.clone() for name, mask in masks.items()}

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        def without(grad: Tensor) -> Tensor:
            kept[name] = kept[name].to(grad.device)
            return grad.masked_fill(~kept[name], 0)

        return without

    handles = [parameters[name].register_hook(hook(name)) for name in masks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def densities(model: nn.Module, masks: Masks) -> dict[str, float]:
    """Kept fraction of every masked weight matrix (biases left out), and of all of them under "total"."""
    parameters = dict(model.named_parameters())
    found = {name: mask for name, mask in masks.items() if parameters[name].ndim > 1}
    out = {name: float(mask.double().mean()) for name, mask in found.items()}
    kept, whole = sum(int(m.sum()) for m in found.values()), sum(m.numel() for m in found.values())
    return out | {"total": kept / whole}
