"""Constants that removed channels still emit, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .accounting.flops import quiet
from .channels import ChannelGraph


@dataclass(frozen=True)
class Fold:
    """What one layer did with the constants of removed input channels.

    Args:
        into: "bias", "running mean" (of the normalisation that follows), "new bias", or "nothing".
        exact: whether the layer's outputs are the same everywhere.
        reason: why not, else "".
    """

    layer: str
    into: str
    exact: bool
    reason: str = ""


@torch.no_grad()
def silence_(model: nn.Module, graph: ChannelGraph, dropped: Mapping[str, Tensor], readers: bool) -> None:
    """Cut dropped units off their inputs, in place: they emit the constant of their shifts.

    Args:
        dropped: group name -> bool, True = dropped.
        readers: cut them off their readers as well, so that the constant is lost.
    """
    tensors = dict(model.named_parameters())
    clear = {"out", "depthwise", "scale"} | ({"in"} if readers else set())
    for name, units in dropped.items():
        group = graph.group(name)
        for member, role in zip(group.members, group.roles, strict=True):
            if role in clear:
                mask = torch.ones_like(tensors[member.name], dtype=torch.bool)
                member.write(~units.to(mask.device), mask)
                tensors[member.name].masked_fill_(~mask, 0)


@torch.no_grad()
def fold_constants_(
    model: nn.Module, reference: nn.Module, graph: ChannelGraph, dropped: Mapping[str, Tensor], example: Any
) -> list[Fold]:
    """Fold what `reference` (silenced) shows at the inputs of consumers into `model`, both still of full size."""
    positions = _positions(graph, dropped, model)
    inputs = _inputs(reference, list(positions), example)
    return [
        fold
        for layer, where in positions.items()
        if (fold := _fold(model, layer, where, inputs.get(layer, []), graph)) is not None
    ]


def _positions(graph: ChannelGraph, dropped: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Layer -> input positions that it loses."""
    parameters = dict(model.named_parameters())
    out: dict[str, list[Tensor]] = {}
    for name, units in dropped.items():
        group = graph.group(name)
        for member, role in zip(group.members, group.roles, strict=True):
            if role == "in":
                size = parameters[member.name].shape[member.dim or 0]
                index = member.index if member.index is not None else torch.arange(size)[:, None]
                out.setdefault(member.name.rpartition(".")[0], []).append(index[units.cpu()].flatten())
    return {layer: torch.cat(parts) for layer, parts in out.items()}


def _inputs(model: nn.Module, layers: list[str], example: Any) -> dict[str, list[Tensor]]:
    """Inputs of each layer in one run, one for each call."""
    seen: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def watch(layer: str) -> Any:
        return lambda module, args: seen[layer].append(args[0].detach())

    handles = [model.get_submodule(layer).register_forward_pre_hook(watch(layer)) for layer in layers]
    try:
        with quiet(model):
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _fold(model: nn.Module, layer: str, where: Tensor, inputs: list[Tensor], graph: ChannelGraph) -> Fold | None:
    """Fold into one layer; None where there is nothing to fold."""
    module = model.get_submodule(layer)
    if not inputs or not isinstance(module, (nn.Linear, _ConvNd)):
        return Fold(layer, "nothing", False, f"inputs of a {type(module).__name__} cannot be watched")
    where = where.to(inputs[0].device)
    dim = -1 if isinstance(module, nn.Linear) else 1
    calls = [x.movedim(dim, 0)[where].flatten(1) for x in inputs]
    if not any(bool(values.any()) for values in calls):
        return None
    if len(calls) > 1:
        return Fold(layer, "nothing", False, f"it is called {len(calls)} times")
    if isinstance(module, _ConvTransposeNd):
        return Fold(layer, "nothing", False, "outputs of a transposed convolution see kernels of different extent")
    values, constant = calls[0], calls[0].mean(1)
    # Float64 sums: the fold itself adds no rounding of its own.
    columns = module.weight.detach()[:, where].double().reshape(len(module.weight), len(where), -1).sum(2)
    delta = (columns @ constant.double()).to(module.weight.dtype)
    into = _add(model, layer, module, delta, graph)
    return Fold(layer, into, *_exactness(module, values, constant))


def _exactness(module: nn.Linear | _ConvNd, values: Tensor, constant: Tensor) -> tuple[bool, str]:
    spread = float((values - constant[:, None]).abs().max())
    if spread > 100 * torch.finfo(values.dtype).eps * max(1.0, float(values.abs().max())):
        return False, f"removed channels are not constant, they vary by {spread:.3g}; their mean was folded"
    if isinstance(module, _ConvNd) and module.padding_mode == "zeros" and _pads(module):
        return False, "zero padding: exact away from the border only"
    return True, ""


def _pads(module: _ConvNd) -> bool:
    if isinstance(module.padding, str):
        return module.padding == "same" and any(k > 1 for k in module.kernel_size)
    return any(p > 0 for p in module.padding)


def _add(model: nn.Module, layer: str, module: nn.Linear | _ConvNd, delta: Tensor, graph: ChannelGraph) -> str:
    """Add `delta` to the layer's outputs."""
    if module.bias is not None:
        module.bias.add_(delta)
        return "bias"
    mean = graph.followed.get(f"{layer}.weight")
    if mean is not None:
        model.get_buffer(mean).sub_(delta)
        return "running mean"
    module.bias = nn.Parameter(delta, requires_grad=module.weight.requires_grad)
    return "new bias"
