"""Whole-network channel rearrangement: channels that need the same inputs come together, and the function stays.

Channels that residual sums, concatenations or depthwise convolutions couple move together, and with them every
normalisation, bias and reader. What the network reads and what it gives out keep their order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .channels import ChannelGraph, ChannelGroup, channel_graph
from .grouping import Part, group_rows
from .strips import OutBlock
from .surgery import Surgery, permute_channels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerGain:
    """Kept share of one layer's importance (sum of |w|) at the sparsity asked for.

    Attributes:
        group: of channels that moved together; "" where the layer's outputs stay in place.
        before, after: blocks in the present order and in the new one. free: unstructured, which no order exceeds.
    """

    layer: str
    group: str
    total: float
    before: float
    after: float
    free: float

    @property
    def recovered(self) -> float:
        """Share of the gap between blocks and unstructured pruning that the new order closes."""
        gap = self.free - self.before
        return (self.after - self.before) / gap if gap > 0 else 0.0


@dataclass(frozen=True)
class Rearrangement:
    """New orders of channels, what they gain, and what stays in place.

    Attributes:
        orders: channel group -> for each new channel the old one.
        layers: kept importance of each pruned layer. refused: layer -> why its channels stay.
        sparsity: for which the orders were sought.
    """

    orders: dict[str, list[int]]
    layers: tuple[LayerGain, ...]
    refused: dict[str, str]
    sparsity: float
    example: Any = field(repr=False, compare=False)

    def apply(
        self, model: nn.Module, *, inplace: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """The model with its channels in the new order; it computes the same up to the order of summation.

        Args:
            inplace, optimizer: change `model` itself, and the buffers of its optimiser with it.
        Raises:
            ConfigError: channel groups unlike those of the model that was analysed.
        """
        return self._permute(model, self.orders, inplace, optimizer).model

    def undo(
        self, model: nn.Module, *, inplace: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """Back to the old order, bit for bit; arguments as in `apply`."""
        return self._permute(model, self.inverse(), inplace, optimizer).model

    def inverse(self) -> dict[str, list[int]]:
        """Channel group -> for each old channel the new one."""
        return {name: torch.tensor(order).argsort().tolist() for name, order in self.orders.items()}

    def _permute(
        self, model: nn.Module, orders: dict[str, list[int]], inplace: bool, optimizer: torch.optim.Optimizer | None
    ) -> Surgery:
        return permute_channels(model, self.example, orders, inplace=inplace, optimizer=optimizer)

    @property
    def before(self) -> float:
        """Kept share of the importance of all pruned layers in the old order."""
        return _share(self.layers, "before")

    @property
    def after(self) -> float:
        """Kept share in the new order."""
        return _share(self.layers, "after")

    @property
    def free(self) -> float:
        """Kept share of unstructured pruning."""
        return _share(self.layers, "free")

    @property
    def recovered(self) -> float:
        """Share of the gap between blocks and unstructured pruning that the new order closes."""
        gap = self.free - self.before
        return (self.after - self.before) / gap if gap > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Gains, orders and refusals."""
        rows = [
            {"layer": r.layer, "group": r.group, "before": r.before, "after": r.after, "free": r.free}
            for r in self.layers
        ]
        whole = {"before": self.before, "after": self.after, "free": self.free, "recovered": self.recovered}
        return {
            "sparsity": self.sparsity,
            "whole": whole,
            "layers": rows,
            "orders": self.orders,
            "refused": self.refused,
        }

    def __str__(self) -> str:
        head = ("layer", "block", "rearranged", "unstructured", "gap closed")
        whole = ("all layers", self.before, self.after, self.free, self.recovered)
        rows = [(r.layer, r.before, r.after, r.free, r.recovered) for r in self.layers]
        cells = [head] + [(n, *(f"{v:.3f}" for v in v3), f"{g:.0%}") for n, *v3, g in [*rows, whole]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([*lines, *(f"{layer} stays: {reason}" for layer, reason in self.refused.items())])


def _share(layers: tuple[LayerGain, ...], name: str) -> float:
    total = sum(row.total for row in layers)
    return sum(getattr(row, name) * row.total for row in layers) / total if total else 0.0


def rearrange(
    model: nn.Module,
    example: Any,
    patterns: Mapping[str, OutBlock],
    sparsity: float,
    *,
    passes: int = 4,
    seed: int = 0,
) -> Rearrangement:
    """Orders of channels in which pruning in blocks keeps more of the weights' importance.

    The model is not changed: call `.apply(model)`, then prune. For each set of coupled channels one order serves all
    layers that make them. It is never worse than the present one.

    Args:
        model: any traceable network. example: one input (B, ...) or a tuple of positional arguments.
        patterns: parameter name -> pattern, as from `layer_patterns(model).patterns`.
        sparsity: of each layer, in [0, 1).
        passes, seed: of the search, see `grouping.group_rows`.
    Raises:
        ConfigError: a sparsity outside [0, 1); a name that is no parameter; control flow that depends on data;
            balanced strips without a cell.
    Source: Xu et al. 2023 (SparseByteNN), "whole network rearrangement"; the algorithm is reconstructed.
    """
    parameters = dict(model.named_parameters())
    for name in patterns:
        if name not in parameters:
            raise ConfigError(f"the model has no parameter {name!r}; it has {sorted(parameters)[:5]} ...")
    check_static(model, example)
    graph = channel_graph(model, example)
    parts = {name: _part(parameters[name], pattern, sparsity) for name, pattern in patterns.items()}
    orders: dict[str, list[int]] = {}
    refused = {_layer(name): reason for name, reason in _refused(graph, patterns).items()}
    for group in graph.groups:
        members, problem = _movable(group, parts, parameters)
        if problem:
            refused[group.name] = problem
        elif members:
            order = group_rows(members, passes=passes, seed=seed)
            if order != list(range(group.numel)):
                orders[group.name] = order
            log.info("%s: %d channels", group.name, group.numel)
    return Rearrangement(orders, _gains(graph, parts, orders), refused, sparsity, example)


def check_static(model: nn.Module, example: Any) -> None:
    """Raise ConfigError where the code of `model` takes ways that depend on data: one run would not show them all."""
    arguments = example if isinstance(example, tuple) else (example,)
    try:
        torch.export.export(model, arguments, strict=False)
    except Exception as error:  # export has no common error type
        known = ("DataDependent", "data-dependent", "Could not guard")
        if any(word in f"{type(error).__name__} {error}" for word in known):
            raise ConfigError(
                f"{type(model).__name__} has control flow that depends on data, so its channels cannot be followed; "
                f"rearrange its parts one by one"
            ) from error


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _part(weight: Tensor, pattern: OutBlock, sparsity: float) -> Part:
    importance = OutBlock(1).scores(weight).numpy()
    part = Part(importance, pattern, sparsity)
    part.keep  # noqa: B018 (raises for a sparsity that cannot be)
    return part


def _refused(graph: ChannelGraph, patterns: Mapping[str, OutBlock]) -> dict[str, str]:
    return {name: graph.refused[_layer(name)] for name in patterns if _layer(name) in graph.refused}


def _makers(group: ChannelGroup, parts: Mapping[str, Part]) -> list[tuple[str, Tensor | None]]:
    """Pruned layers whose output channels the group holds, with the places of its units."""
    found = zip(group.members, group.roles, strict=True)
    return [(m.name, m.index) for m, role in found if role == "out" and m.dim == 0 and m.name in parts]


def _movable(
    group: ChannelGroup, parts: Mapping[str, Part], parameters: Mapping[str, Tensor]
) -> tuple[list[Part], str]:
    """The rows of each pruned layer that the group moves, or why it stays."""
    members: list[Part] = []
    heights = {parts[name].pattern.rows for name, _ in _makers(group, parts)}
    if len(heights) > 1:
        return [], f"its layers have strips of different heights {sorted(heights)}"
    for name, index in _makers(group, parts):
        part = parts[name]
        if index is None:
            members.append(part)
            continue
        places = index.flatten()
        begin, length, height = int(places[0]), len(places), part.pattern.rows
        fills = index.shape[1] == 1 and torch.equal(places, torch.arange(begin, begin + length))
        if not fills or begin % height or (length % height and begin + length < len(parameters[name])):
            return [], f"its channels do not fill whole strips of {name}"
        members.append(Part(part.importance[begin : begin + length], part.pattern, part.sparsity))
    return members, ""


def _gains(graph: ChannelGraph, parts: Mapping[str, Part], orders: Mapping[str, list[int]]) -> tuple[LayerGain, ...]:
    rows = {name: list(range(len(part.importance))) for name, part in parts.items()}
    groups = dict.fromkeys(parts, "")
    for group in graph.groups:
        order = orders.get(group.name)
        for name, index in _makers(group, parts) if order else ():
            places = list(range(group.numel)) if index is None else index.flatten().tolist()
            assert order is not None
            for place, source in zip(places, order, strict=True):
                rows[name][place] = places[source]
            groups[name] = group.name
    return tuple(_gain(name, groups[name], part, rows[name]) for name, part in parts.items())


def _gain(name: str, group: str, part: Part, order: list[int]) -> LayerGain:
    total = float(part.importance.sum())
    before, after, free = part.kept(range(len(order))), part.kept(order), part.free()
    scale = 1 / total if total else 0.0
    return LayerGain(_layer(name), group, total, before * scale, after * scale, free * scale)
