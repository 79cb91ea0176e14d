"""Cuts that can be taken back: layers dropped, feed-forwards narrowed, heads silenced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...errors import ConfigError, MaskError
from .calibration import Calibration
from .components import Component, Layer, ffn_parts, find_layers, weight_of


class Nothing(nn.Module):
    """In the place of a module whose output is added to a residual stream: adds nothing."""

    def __init__(self, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape that the replaced module gave."""
        return x.new_zeros(*x.shape[:-1], self.outputs if self.outputs is not None else x.shape[-1])


class Through(nn.Module):
    """In the place of a module (h, residual) -> norm(h + residual) of a post-norm layer: the residual alone."""

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        """The second input."""
        return residual


@dataclass
class Cut:
    """A change of a model; `undo()` puts back exactly what was there. Until then the model is really smaller.

    Args:
        model: the changed model. removed: parameters that it no longer has. what: of the cut, one line.
    """

    model: nn.Module
    removed: int
    what: str
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def undo(self) -> nn.Module:
        """Take the cut back, bit for bit."""
        for step in reversed(self._undo):
            step()
        self._undo.clear()
        return self.model


def _check(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ConfigError(f"keep must lie in (0, 1], got {keep}")


def _swap(model: nn.Module, name: str, new: nn.Module) -> Callable[[], None]:
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    old = getattr(holder, leaf)
    setattr(holder, leaf, new)
    return lambda: setattr(holder, leaf, old)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def drop_layers(scores: dict[int, float], keep: float) -> list[int]:
    """The floor((1 - keep) L) layers with the highest cosine; ties: the later layer.

    Raises:
        MaskError: every layer would go.
    """
    _check(keep)
    count = int((1 - keep) * len(scores) + 1e-9)
    if count >= len(scores):
        raise MaskError(f"keep {keep} of {len(scores)} layers drops them all; keep at least {1 / len(scores):.3g}")
    return sorted(sorted(scores, key=lambda n: (scores[n], n))[len(scores) - count :])


def cut_depth(
    model: nn.Module, component: Component, calibration: Calibration, keep: float = 0.5, kind: str = "block"
) -> Cut:
    """Drop the layers ("block"), attentions or feed-forwards that change their input least.

    Keys and values of a dropped attention are still there for other streams: only its output is left out.
    Source: He et al. 2025, depth pruning; the default keep is theirs.
    """
    dropped = set(drop_layers(calibration.cosine(kind), keep))
    before, undo = _size(model), []
    for layer in find_layers(model, component):
        if layer.number in dropped:
            for name, new in _without(model, component, layer, kind).items():
                undo.append(_swap(model, name, new))
    what = f"{component.name}: {kind} of layers {sorted(dropped)} dropped"
    return Cut(model, before - _size(model), what, undo)


def _without(model: nn.Module, component: Component, layer: Layer, kind: str) -> dict[str, nn.Module]:
    """Name -> what takes its place where an attention, a feed-forward or both are left out."""
    new: dict[str, nn.Module] = {}
    _, up, down = ffn_parts(model.get_submodule(layer.mlp), layer.mlp)
    if kind != "mlp":
        width = len(weight_of(model.get_submodule(layer.attention)))
        name = layer.attention.rpartition(".")[0] if component.post else layer.attention
        new[name] = Through() if component.post else Nothing(width)
    if kind != "attention" and component.post:
        new |= {f"{layer.mlp}.{_holder(up)}": nn.Identity(), f"{layer.mlp}.{_holder(down)}": Through()}
    elif kind != "attention":
        new[layer.mlp] = Nothing()
    return new


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def cut_width(
    model: nn.Module,
    component: Component,
    calibration: Calibration,
    keep: float = 0.5,
    *,
    scores: Callable[[int, Tensor], Tensor] | None = None,
) -> Cut:
    """Keep the floor(keep I) neurons of every feed-forward with the largest mean |h| ||W_down||; layers get smaller.

    Args:
        scores: (layer number, down weight) -> (I,), instead of the calibration's.
    Raises:
        ConfigError: keep out of range or no neuron left, all scores equal to zero.
    """
    _check(keep)
    before, undo = _size(model), []
    for layer in find_layers(model, component):
        mlp = model.get_submodule(layer.mlp)
        gate, up, down = ffn_parts(mlp, layer.mlp)
        weight = weight_of(mlp.get_submodule(down))
        score = (scores or calibration.neurons)(layer.number, weight.detach())
        if not bool(score.any()):
            raise ConfigError(f"all scores of {layer.mlp} are zero: nothing was active in calibration")
        count = int(keep * len(score) + 1e-9)
        if count < 1:
            raise ConfigError(f"keep {keep} leaves {layer.mlp} none of its {len(score)} neurons")
        kept = score.argsort(descending=True, stable=True)[:count].sort().values
        if count < len(score):
            rows = [part for part in (gate, up) if part is not None]
            undo += [_swap(model, f"{layer.mlp}.{part}", take(mlp.get_submodule(part), kept, 0)) for part in rows]
            undo.append(_swap(model, f"{layer.mlp}.{down}", take(mlp.get_submodule(down), kept, 1)))
    return Cut(model, before - _size(model), f"{component.name}: {keep:.0%} of the neurons kept", undo)


def take(layer: nn.Module, kept: Tensor, dim: int) -> nn.Linear:
    """A linear layer with only the rows (dim 0) or columns (dim 1) `kept`."""
    weight = weight_of(layer).detach().index_select(dim, kept)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias[kept] if dim == 0 else bias)
    return new.train(layer.training)


def cut_heads(model: nn.Module, component: Component, calibration: Calibration, keep: float = 0.5) -> Cut:
    """Silence the heads whose projected output is smallest: their columns of the output layer become 0.

    Raises:
        ConfigError: the component does not say how many heads it has, or they do not divide the width.
    """
    _check(keep)
    if component.heads is None:
        raise ConfigError(f"component {component.name!r} needs heads=... for cuts of heads")
    undo: list[Callable[[], None]] = []
    for layer in find_layers(model, component):
        weight = weight_of(model.get_submodule(layer.attention))
        if weight.shape[1] % component.heads:
            raise ConfigError(
                f"{layer.attention} reads {weight.shape[1]} values, not a multiple of {component.heads} heads"
            )
        mean = calibration.heads[layer.number] / calibration.tokens[layer.number]
        score = (mean * weight.detach().norm(dim=0)).view(component.heads, -1).mean(1)
        count = component.heads - max(1, int(keep * component.heads + 1e-9))
        silent = score.argsort(stable=True)[:count]
        old = weight.detach().clone()
        with torch.no_grad():
            columns = torch.arange(weight.shape[1], device=weight.device).view(component.heads, -1)[silent].flatten()
            weight[:, columns] = 0
        undo.append(lambda w=weight, o=old: w.data.copy_(o))  # type: ignore[misc]
    return Cut(model, 0, f"{component.name}: {keep:.0%} of the heads kept", undo)
