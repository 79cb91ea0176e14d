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
_CLOSE = 0.05  # relative difference between what a layer gave and what the next one reads, for rounding in bfloat16


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
        ConfigError: no token reached the component, or its layers do not add up as a component's must.
        NumericsError: NaN or infinite activations (the layer is named).
    """
    layers, found = find_layers(model, component), Calibration()
    handles: list[Any] = []
    before: _Watch | None = None
    for layer in layers:
        before = _Watch(model, component, layer, found, before)
        handles += before.handles()
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


class _Watch:
    """Hooks of one layer: what reads its input gives x; the attention's and the feed-forward's outputs give r and y."""

    def __init__(
        self, model: nn.Module, component: Component, layer: Layer, found: Calibration, before: _Watch | None
    ) -> None:
        self.model, self.component, self.layer, self.found, self.before = model, component, layer, found, before
        self.x = self.r = torch.empty(0)
        self.y: Tensor | None = None

    def handles(self) -> list[Any]:
        """Installs the hooks."""
        get, layer = self.model.get_submodule, self.layer
        mlp = get(layer.mlp)
        hooks = [
            get(layer.norm).register_forward_pre_hook(self.entered),
            get(layer.attention).register_forward_hook(self.attended),
            get(f"{layer.mlp}.{ffn_parts(mlp, layer.mlp)[2]}").register_forward_pre_hook(self.activated),
            mlp.register_forward_hook(self.finished),
        ]
        if self.component.post:
            hooks.append(get(layer.attention.rpartition(".")[0]).register_forward_hook(self.normed))
        return hooks

    def entered(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.x = _states(inputs)
        given = None if self.before is None else self.before.y
        if self.before is not None:
            self.before.y = None
        if (
            given is not None
            and given.shape == self.x.shape
            and float((given - self.x).norm()) > _CLOSE * float(given.norm())
        ):
            raise ConfigError(
                f"layer {self.layer.number} of component {self.component.name!r} does not read what the patterns say "
                "that the layer before it gives: x + attention + feed-forward; name the modules whose outputs are added"
            )

    def attended(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.r = self.x + _states(output)
        _add(self.found.heads, self.layer.number, _states(inputs).abs().sum(0))

    def normed(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.r = _states(output)

    def activated(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        h = _states(inputs)
        if not bool(torch.isfinite(h.sum())):
            raise NumericsError(f"activations of {self.layer.mlp} are not finite in calibration; check the inputs")
        _add(self.found.activity, self.layer.number, h.abs().sum(0))

    def finished(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x, r, number = self.x, self.r, self.layer.number
        y = _states(output) if self.component.post else r + _states(output)
        cosine = nn.functional.cosine_similarity
        sums = torch.stack([cosine(x, y, -1).sum(), cosine(x, r, -1).sum(), cosine(r, y, -1).sum()])
        _add(self.found.cosines, number, sums)
        self.found.tokens[number] = self.found.tokens.get(number, 0) + len(x)
        self.y = y


def _states(values: Any) -> Tensor:
    """(tokens, d) float32 of a tensor (..., d), or of the first in a tuple of inputs or outputs."""
    first: Tensor = values if isinstance(values, Tensor) else values[0]
    return first.detach().flatten(0, -2).float()


def _add(store: dict[int, Tensor], number: int, value: Tensor) -> None:
    store[number] = value if number not in store else store[number] + value
