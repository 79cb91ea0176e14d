"""Connectivity: whether paths lead from the input of a masked network to every output, and through which weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, unknown

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class LayerPaths:
    """One masked weight tensor.

    Args:
        kept: entries that the mask keeps.
        effective: kept entries on some path from the input to an output; the others never matter.
    """

    name: str
    kept: int
    effective: int


@dataclass(frozen=True)
class Connectivity:
    """What `connectivity` found.

    Args:
        outputs: entries of the output for one sample.
        unreached: flat indices of outputs without a path from the input: they are constant.
        layers: masked tensors in the order of the model.
    """

    outputs: int
    unreached: tuple[int, ...]
    layers: tuple[LayerPaths, ...]

    @property
    def connected(self) -> bool:
        """Whether every output is reached."""
        return not self.unreached

    @property
    def effective(self) -> float:
        """Share of the kept weights that lie on a path; 1.0 without masks."""
        kept = sum(layer.kept for layer in self.layers)
        return sum(layer.effective for layer in self.layers) / kept if kept else 1.0


def connectivity(model: nn.Module, example: Tensor, masks: Mapping[str, Tensor] | None = None) -> Connectivity:
    """Follow all paths through a masked network: positive flow forwards, relevance backwards, on a copy.

    Every weight becomes 1 where kept and 0 elsewhere, biases become 0, normalisation is passed by, and the input is
    all ones. Then an output is positive exactly if a path reaches it, and a weight has a gradient exactly if a path
    leads through it. Holds for activations that keep 0 at 0 and positive values positive (ReLU, GELU, SiLU, tanh);
    queries and keys of attention only weigh paths and are not followed.

    Args:
        model: any module with one input and one output tensor.
        example: (B, ...), of which only shape and device matter; one sample is used.
        masks: parameter name -> bool mask; None: the non-zero values of all weights with two or more dimensions.
    Raises:
        ConfigError: a mask of no parameter, an example without samples, or an output that is no tensor.
    """
    if example.ndim == 0 or not len(example):
        raise ConfigError("connectivity needs an example input with at least one sample")
    net = copy.deepcopy(model).double().eval()
    kept = _to_ones(net, masks)
    with ExitStack() as hooks, torch.enable_grad():
        for module in net.modules():
            if isinstance(module, _NORMS):
                hooks.enter_context(module.register_forward_hook(lambda m, args, out: args[0]))
            elif any(True for _ in module.parameters(recurse=False)):
                hooks.enter_context(module.register_forward_hook(_levelled))
        out = net(torch.ones_like(example[:1], dtype=torch.float64))
    if not isinstance(out, Tensor):
        raise ConfigError(f"connectivity needs a model that returns one tensor, got {type(out).__name__}")
    flow = out.flatten()
    weights = [p for p, _ in kept.values()]
    gradients = torch.autograd.grad(_shares(flow).sum(), weights, allow_unused=True)
    layers = (
        LayerPaths(name, int(mask.sum()), 0 if g is None else int(((g != 0) & mask).sum()))
        for (name, (_, mask)), g in zip(kept.items(), gradients, strict=True)
    )
    unreached = torch.nonzero(flow.detach() <= 0).flatten().tolist()
    return Connectivity(flow.numel(), tuple(unreached), tuple(layers))


def _levelled(module: nn.Module, args: Any, out: Any) -> Any:
    """Positive flow at level 1, so that no depth overflows; the gradient becomes a share of the flow."""
    return _shares(out) if isinstance(out, Tensor) else out


def _shares(flow: Tensor) -> Tensor:
    """1 where flow is positive, 0 elsewhere and without a gradient there."""
    level = flow.detach()
    return torch.where(level > 0, flow / torch.where(level > 0, level, 1.0), 0.0)


@torch.no_grad()
def _to_ones(net: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Set parameters to what is kept of them. Returns name -> (parameter, mask) of the masked ones."""
    parameters = dict(net.named_parameters())
    for name in masks or ():
        if name not in parameters:
            raise unknown("masked parameter", name, parameters)
    found = {}
    for name, p in parameters.items():
        if masks is None and p.ndim > 1:
            mask = p != 0
        elif masks is not None and name in masks:
            mask = masks[name].to(p.device)
        else:
            p.fill_(1.0 if p.ndim > 1 else 0.0)
            continue
        p.copy_(mask.double())
        found[name] = (p.requires_grad_(True), mask)
    return found
