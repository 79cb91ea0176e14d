"""Coupled channel groups of a model: found by running it once on an example."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from ...errors import ConfigError
from ..accounting.flops import quiet
from ..groups import Group, Member
from .trace import Trace

log = logging.getLogger(__name__)
Key = tuple[str, int]


@dataclass(frozen=True)
class ChannelGroup(Group):
    """Units whose members are slices of several tensors.

    Args:
        roles: of the members: "out" makes the channel, "in" reads it, "depthwise" does both; "scale" and "shift" of
            normalisation and bias, "factor" of other parameters.
        buffers: members among buffers: running means and variances.
    """

    roles: tuple[str, ...] = ()
    buffers: tuple[Member, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class ChannelGraph:
    """What couples the channels of a model.

    Args:
        groups: units that may be removed, in registration order of the first layer that makes them.
        refused: layer -> why (some of) its output channels must stay.
        followed: weight -> running mean of the batch normalisation that alone reads its output.
    """

    groups: list[ChannelGroup]
    refused: dict[str, str]
    followed: dict[str, str]

    def group(self, name: str) -> ChannelGroup:
        """The group of this name.

        Raises:
            ConfigError: there is none; the reason if its channels must stay, else the names there are.
        """
        for group in self.groups:
            if group.name == name:
                return group
        if name in self.refused:
            raise ConfigError(f"channels of {name} cannot be changed: {self.refused[name]}")
        raise ConfigError(f"no channel group {name!r}; there are {[g.name for g in self.groups]}")


def channel_graph(model: nn.Module, example: Any) -> ChannelGraph:
    """Follow the channels of `model` through one run on `example`, in evaluation mode, without side effects.

    Understood are linear layers, convolutions (also depthwise and transposed), batch and group normalisation,
    element-wise operators and sums, concatenation, pooling, flattening, squeeze-and-excitation, heads of
    `scaled_dot_product_attention`, gated and plain feed-forwards. Everything else keeps the channels that enter it.

    Args:
        example: one input (B, ...) or a tuple of positional arguments; B = 1 is enough.
    Raises:
        ConfigError: weights under a parametrisation.
    """
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ConfigError("channels of a parametrised model cannot be traced; call finalize() first")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    trace = Trace({id(tensor): name for name, tensor in reversed(tensors)})
    with quiet(model), trace:
        output = model(*(example if isinstance(example, tuple) else (example,)))
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            trace.sets.freeze(trace.get(leaf), "it is an output of the network")
    _freeze_attention(model, trace)
    return _graph(trace, [name for name, _ in tensors], {name for name, _ in model.named_buffers()})


def _freeze_attention(model: nn.Module, trace: Trace) -> None:
    """torch's own attention module checks its width against what it was built with."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            for (name, _), labels in trace.dims.items():
                if name.startswith(f"{path}." if path else ""):
                    trace.sets.freeze(labels, "nn.MultiheadAttention cannot change its width")


def channel_groups(model: nn.Module, example: Any) -> list[Group]:
    """The channel groups of `model` that may be removed, for `Sparsifier(..., groups=...)`; refusals are logged."""
    graph = channel_graph(model, example)
    for layer, reason in graph.refused.items():
        log.info("channels of %s stay: %s", layer, reason)
    return list(graph.groups)


def _graph(trace: Trace, order: list[str], buffers: set[str]) -> ChannelGraph:
    rank = {name: i for i, name in enumerate(order)}
    keys = sorted(trace.dims, key=lambda key: (rank[key[0]], key[1]))
    classes: dict[int, dict[Key, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key in keys:
        for position, label in enumerate(trace.dims[key].tolist()):
            classes[trace.sets.find(label)][key].append(position)
    together: dict[tuple[tuple[Key, int], ...], list[dict[Key, list[int]]]] = defaultdict(list)
    for root, places in classes.items():
        roles = {trace.roles[key] for key in places}
        if trace.sets.reason(root) is None and "out" in roles and "in" in roles:
            together[tuple((key, len(where)) for key, where in places.items())].append(places)
    groups: list[ChannelGroup] = []
    taken: set[str] = set()
    for units in sorted(together.values(), key=lambda u: _first(u[0], trace, rank)):
        group = _group(units, trace, buffers, taken)
        taken.add(group.name)
        groups.append(group)
    return ChannelGraph(groups, _refused(trace, keys), trace.followed)


def _first(places: dict[Key, list[int]], trace: Trace, rank: dict[str, int]) -> tuple[int, int]:
    """Where the first layer that makes these channels stands, and its first channel."""
    return min((rank[key[0]], where[0]) for key, where in places.items() if trace.roles[key] == "out")


def _path(parameter: str) -> str:
    """Name of the layer of a parameter."""
    return parameter.rpartition(".")[0] or parameter


def _group(units: list[dict[Key, list[int]]], trace: Trace, buffers: set[str], taken: set[str]) -> ChannelGroup:
    keys = list(units[0])
    name = base = _path(next(key[0] for key in keys if trace.roles[key] == "out"))
    while name in taken:
        name = f"{base}#{int(name.rpartition('#')[2]) + 1 if '#' in name else 2}"
    members, statistics, roles = [], [], []
    for key in keys:
        index = torch.tensor([unit[key] for unit in units])
        whole = index.shape[1] == 1 and torch.equal(index.flatten(), torch.arange(len(trace.dims[key])))
        member = Member(key[0], key[1], None if whole else index)
        if key[0] in buffers:
            statistics.append(member)
        else:
            members.append(member)
            roles.append(trace.roles[key])
    return ChannelGroup(name, (len(units),), tuple(members), tuple(roles), tuple(statistics))


def _refused(trace: Trace, keys: list[Key]) -> dict[str, str]:
    out: dict[str, str] = {}
    for key in keys:
        if trace.roles[key] != "out":
            continue
        for label in trace.dims[key].tolist():
            reason = trace.sets.reason(label)
            if reason is not None:
                out.setdefault(_path(key[0]), reason)
                break
    return out
