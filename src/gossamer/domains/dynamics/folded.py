"""A ReLU network with every identity and removed neuron folded away: what planners and bounds work on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...errors import ConfigError, NumericsError
from .model import IDENTITY, RELU, GatedReLUMLP

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Folded:
    """y_k = max(pre_k [x; y_1..y_k-1] + pre_bias_k, 0) for K ReLUs in order, output = out [x; y] + out_bias.

    Args:
        pre: (K, n + K), a row reads only earlier ReLUs. pre_bias: (K,). out: (m, n + K). out_bias: (m,).
        layers: ReLUs of each layer, summing to K; those of one layer do not read each other.
    """

    pre: Array
    pre_bias: Array
    out: Array
    out_bias: Array
    layers: tuple[int, ...]

    @property
    def relus(self) -> int:
        return len(self.pre_bias)

    @property
    def inputs(self) -> int:
        return self.out.shape[1] - self.relus

    def activations(self, x: Array) -> tuple[Array, Array]:
        """Pre-activations and outputs of the ReLUs, (B, K) each, for inputs (B, n)."""
        a, y, start = np.zeros((len(x), self.relus)), np.zeros((len(x), self.relus)), 0
        for count in self.layers:
            rows = slice(start, start + count)
            a[:, rows] = x @ self.pre[rows, : self.inputs].T + y @ self.pre[rows, self.inputs :].T + self.pre_bias[rows]
            y[:, rows] = np.maximum(a[:, rows], 0)
            start += count
        return a, y

    def __call__(self, x: Array) -> Array:
        """(B, n) -> (B, m)."""
        _, y = self.activations(x)
        result: Array = np.concatenate([x, y], 1) @ self.out.T + self.out_bias
        return result


Layer = tuple[Array, Array, Array]  # weight, bias, states of the outputs


def fold(model: nn.Module) -> Folded:
    """The folded form of a GatedReLUMLP, or of an nn.Sequential of Linear and ReLU; exact.

    Raises:
        ConfigError: another module, named. NumericsError: NaN or infinity among the weights.
    """
    layers = _gated(model) if isinstance(model, GatedReLUMLP) else _plain(model)
    if not all(np.isfinite(w).all() and np.isfinite(b).all() for w, b, _ in layers):
        raise NumericsError("a weight of the dynamics model is NaN or infinite; it cannot be planned with")
    inputs = layers[0][0].shape[1]
    total = int(sum((states == RELU).sum() for _, _, states in layers))
    width = inputs + total
    value, bias = np.eye(inputs, width), np.zeros(inputs)  # the current layer as affine maps of [x; y]
    pre, pre_bias, counts = np.zeros((total, width)), np.zeros(total), []
    done = 0
    for weight, offset, states in layers:
        value, bias = weight @ value, weight @ bias + offset
        relu = np.flatnonzero(states == RELU)
        own = slice(done, done + len(relu))
        pre[own], pre_bias[own] = value[relu], bias[relu]
        gone = states != IDENTITY
        value[gone], bias[gone] = 0.0, 0.0
        value[relu, inputs + done + np.arange(len(relu))] = 1.0
        counts.append(len(relu))
        done += len(relu)
    return Folded(pre, pre_bias, value, bias, tuple(counts[:-1]))


def _array(values: object) -> Array:
    return np.asarray(values.detach().cpu().double().numpy())  # type: ignore[attr-defined]


def _gated(model: GatedReLUMLP) -> list[Layer]:
    """Layers with the standardisation worked into the first and the last."""
    weights = [_array(layer.weight) for layer in model.layers]
    biases = [_array(layer.bias) for layer in model.layers]
    weights[0] = weights[0] / _array(model.scale)
    biases[0] = biases[0] - weights[0] @ _array(model.shift)
    factor = _array(model.out_scale)
    weights[-1], biases[-1] = factor[:, None] * weights[-1], factor * biases[-1] + _array(model.out_shift)
    states = [s.numpy() for s in model.states.split(model.widths[1:-1])]
    return list(zip(weights, biases, [*states, np.full(model.widths[-1], IDENTITY)], strict=True))


def _plain(model: nn.Module) -> list[Layer]:
    if not isinstance(model, nn.Sequential):
        raise ConfigError(
            f"cannot plan with a {type(model).__name__}; give a GatedReLUMLP or an nn.Sequential of Linear and ReLU"
        )
    parts = [(name, part) for name, part in model.named_children() if not isinstance(part, nn.Flatten | nn.Identity)]
    layers: list[Layer] = []
    for (_, part), (_, after) in pairwise([*parts, ("", nn.Identity())]):
        if isinstance(part, nn.Linear):
            kind = RELU if isinstance(after, nn.ReLU) else IDENTITY
            bias = _array(part.bias) if part.bias is not None else np.zeros(part.out_features)
            layers.append((_array(part.weight), bias, np.full(part.out_features, kind)))
    for name, part in parts:
        if not isinstance(part, nn.Linear | nn.ReLU):
            raise ConfigError(
                f"layer {name!r} is a {type(part).__name__}: only Linear and ReLU are piecewise affine "
                "programs here; use ReLU"
            )
    if not layers or isinstance(parts[-1][1], nn.ReLU) or isinstance(parts[0][1], nn.ReLU):
        raise ConfigError("the model must begin and end with a Linear layer")
    return layers
