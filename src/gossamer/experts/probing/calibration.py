"""What calibration calls show of each layer: cosines between states, activity of neurons and heads.

Means run over all calls and tokens (the released scripts keep the last call only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, NumericsError
from .components import Component, Layer, ffn_parts, find_layers

KINDS = ("block", "attention", "mlp")


@dataclass
class Calibration:
    """Sums over tokens, by layer number.

    Args:
        cosines: number -> sums of cos(x, y), cos(x, r), cos(r, y): block, attention, feed-forward.
        activity: number -> (I,) sums of |h|, the input of the down projection.
        heads: number -> (d,) sums of |z|, the input of the attention's output layer.
        tokens: number -> tokens seen.
    """

    cosines: dict[int, Tensor] = field(default_factory=dict)
    activity: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    def cosine(self, kind: str) -> dict[int, float]:
        """Number -> mean cosine of "block", "attention" or "mlp": what is near 1 changes little."""
        if kind not in KINDS:
            raise ConfigError(f"kinds of cut layers are {KINDS}, got {kind!r}")
        return {n: float(sums[KINDS.index(kind)]) / self.tokens[n] for n, sums in self.cosines.items()}

    def neurons(self, number: int, down: Tensor) -> Tensor:
        """(I,) mean |h| times the norm of the neuron's column of `down` (out, I)."""
        return self.activity[number] / self.tokens[number] * down.norm(dim=0)

    def __add__(self, other: Calibration) -> Calibration:
        """Sums of two tasks: a joint calibration."""
        merged = Calibration()
        for name in ("cosines", "activity", "heads", "tokens"):
            one, two = getattr(self, name), getattr(other, name)
            getattr(merged, name).update({n: one[n] + two[n] for n in one})
        return merged


def calibrate(
    model: nn.Module, component: Component, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None
) -> Calibration:
    """Run `run(model, batch)` (default: model(batch)) on every batch and watch the layers of a component.

    Raises:
        ConfigError: no token reached the component. NumericsError: NaN or infinite activations (the layer is named).
    """
    layers, found = find_layers(model, component), Calibration()
    handles = [handle for layer in layers for handle in _watch(model, layer, found)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch) if run is None else run(model, batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not found.tokens:
        raise ConfigError(f"no token of component {component.name!r} was seen by the calibration calls")
    return found


def _watch(model: nn.Module, layer: Layer, found: Calibration) -> list[Any]:
    """Hooks of one layer: the norm gives x, the attention's output a, the feed-forward's output m."""
    seen: dict[str, Tensor] = {}
    mlp = model.get_submodule(layer.mlp)
    down = getattr(mlp, ffn_parts(mlp, layer.mlp)[2])

    def entered(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["x"] = inputs[0].detach().flatten(0, -2).float()

    def attended(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["a"] = output.detach().flatten(0, -2).float()
        _add(found.heads, layer.number, inputs[0].detach().flatten(0, -2).float().abs().sum(0))

    def activated(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        h = inputs[0].detach().flatten(0, -2).float()
        if not bool(torch.isfinite(h.sum())):
            raise NumericsError(f"activations of {layer.mlp} are not finite in calibration; check the inputs")
        _add(found.activity, layer.number, h.abs().sum(0))

    def finished(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, r = seen["x"], seen["x"] + seen["a"]
        y = r + output.detach().flatten(0, -2).float()
        cosine = nn.functional.cosine_similarity
        sums = torch.stack([cosine(x, y, -1).sum(), cosine(x, r, -1).sum(), cosine(r, y, -1).sum()])
        _add(found.cosines, layer.number, sums)
        found.tokens[layer.number] = found.tokens.get(layer.number, 0) + len(x)

    return [
        model.get_submodule(layer.norm).register_forward_pre_hook(entered),
        model.get_submodule(layer.attention).register_forward_hook(attended),
        down.register_forward_pre_hook(activated),
        mlp.register_forward_hook(finished),
    ]


def _add(store: dict[int, Tensor], number: int, value: Tensor) -> None:
    store[number] = value if number not in store else store[number] + value
