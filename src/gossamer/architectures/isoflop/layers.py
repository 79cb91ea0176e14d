"""The layers that stand in for a dense one: parallel branches, two factors, a low rank doped with a sparse weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .sizes import branches, doped_rank, factorized_rank

Layer = nn.Linear | nn.Conv2d
BETWEEN = ("linear", "nonlinear_norelu", "nonlinear_relu")


def dimensions(layer: nn.Module, name: str = "layer") -> tuple[int, int, int]:
    """(inputs, outputs, taps) of a linear layer or an ungrouped convolution.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, 1
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.in_channels, layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1]
    kind = "a grouped convolution" if isinstance(layer, nn.Conv2d) else type(layer).__name__
    raise ConfigError(f"{name} is {kind}; only linear layers and ungrouped 2-D convolutions can be transformed")


def _first(layer: Layer, outputs: int) -> Layer:
    """A layer like `layer` (kernel, stride, padding) with other outputs and no bias."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias=False)
    padding: Any = layer.padding
    return nn.Conv2d(
        layer.in_channels,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        padding,
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )


def _last(layer: Layer, inputs: int) -> Layer:
    """The pointwise layer from `inputs` to the outputs of `layer`, with its bias."""
    _, outputs, _ = dimensions(layer)
    bias = layer.bias is not None
    return (
        nn.Linear(inputs, outputs, bias) if isinstance(layer, nn.Linear) else nn.Conv2d(inputs, outputs, 1, bias=bias)
    )


class FeatureNorm(nn.BatchNorm1d):
    """Batch normalisation of the last dimension, whatever stands before it: (..., features)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over all positions."""
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def norm_for(layer: Layer, features: int) -> nn.Module:
    """The batch normalisation that fits the output of `layer`."""
    return FeatureNorm(features) if isinstance(layer, nn.Linear) else nn.BatchNorm2d(features)


class Parallel(nn.Module):
    """Sum of branches, each a layer like the dense one, sparse, with a normalisation of its own.

    Args:
        layer: the dense layer. sparsity: 1 / (1 - s) branches.
        norm: normalise every branch; the model's own normalisation after the layer is then left out.
        relu: rectify every branch before the sum (the paper's formula; its code rectifies the sum only).
    """

    def __init__(self, layer: Layer, sparsity: float, *, norm: bool = True, relu: bool = False) -> None:
        super().__init__()
        _, outputs, _ = dimensions(layer)
        count = branches(sparsity)
        self.branches = nn.ModuleList(_first(layer, outputs) for _ in range(count))
        self.norms = nn.ModuleList(norm_for(layer, outputs) for _ in range(count if norm else 0))
        self.relu = relu
        shape = (outputs,) if isinstance(layer, nn.Linear) else (outputs, 1, 1)
        self.bias = nn.Parameter(torch.zeros(shape)) if layer.bias is not None and not norm else None

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer: (..., in) -> (..., out) or (B, in, H, W) -> (B, out, H', W')."""
        parts = [branch(x) for branch in self.branches]
        parts = [norm(part) for norm, part in zip(self.norms, parts, strict=True)] if self.norms else parts
        total = (
            torch.stack([part.relu() if self.relu else part for part in parts]).sum(0) if len(parts) > 1 else parts[0]
        )
        return total if self.bias is None else total + self.bias

    def sparse_weights(self) -> dict[str, Tensor]:
        """The weights that a mask thins out."""
        return {name: p for name, p in self.named_parameters() if name.startswith("branches.")}


class Factorized(nn.Module):
    """V act(U x): two sparse factors with d features between them; U has the kernel and the stride.

    Args:
        between: "linear": nothing between them; "nonlinear_norelu": a normalisation; "nonlinear_relu" (the
            released configuration): with a rectifier.
    """

    def __init__(self, layer: Layer, sparsity: float, *, between: str = "nonlinear_relu") -> None:
        super().__init__()
        if between not in BETWEEN:
            raise ConfigError(f"between must be one of {BETWEEN}, got {between!r}")
        inputs, outputs, taps = dimensions(layer)
        rank = factorized_rank(inputs, outputs, sparsity, taps)
        self.u, self.v = _first(layer, rank), _last(layer, rank)
        steps = [] if between == "linear" else [norm_for(layer, rank)]
        self.between = nn.Sequential(*steps, *([nn.ReLU()] if between == "nonlinear_relu" else []))

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer."""
        return self.v(self.between(self.u(x)))

    def sparse_weights(self) -> dict[str, Tensor]:
        """The weights that a mask thins out."""
        return {"u.weight": self.u.weight, "v.weight": self.v.weight}

    def folded(self) -> Tensor:
        """The one weight that this is without anything between the factors."""
        return torch.tensordot(self.v.weight.flatten(1), self.u.weight, 1)


class Doped(nn.Module):
    """W x + V U x: a sparse weight of the dense layer's shape and a dense low rank that carries the same stride."""

    def __init__(self, layer: Layer, sparsity: float) -> None:
        super().__init__()
        inputs, outputs, taps = dimensions(layer)
        rank = doped_rank(inputs, outputs, sparsity, taps)
        self.w, self.u = _first(layer, outputs), _first(layer, rank)
        self.v = _last(layer, rank)

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer."""
        return self.w(x) + self.v(self.u(x))

    def sparse_weights(self) -> dict[str, Tensor]:
        """The weight that a mask thins out."""
        return {"w.weight": self.w.weight}

    def folded(self) -> Tensor:
        """The one weight that this is."""
        return self.w.weight + torch.tensordot(self.v.weight.flatten(1), self.u.weight, 1)
