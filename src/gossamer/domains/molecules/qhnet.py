"""A dense rival in the manner of QHNet: all paths and all pairs in every layer, by e3nn's own products."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .basis import Layout
from .irreps import block, o3, triples
from .network import Convolution, Shape, SPHNet


class E3nnProduct(nn.Module):
    """e3nn's product of all paths, channel by channel, on features as they lie here.

    Args:
        lmax, channels: of the first operand and the result.
        shared: the second operand has one channel for all (directions) instead of `channels`.
    """

    def __init__(self, lmax: int, channels: int, shared: bool = False) -> None:
        super().__init__()
        self.lmax, self.channels, self.paths = lmax, channels, triples(lmax)
        irreps, second = (
            "+".join(f"{count}x{l}e" for l in range(lmax + 1))  # noqa: E741
            for count in (channels, 1 if shared else channels)
        )
        instructions = [(*path, "uvu" if shared else "uuu", True) for path in self.paths]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own use of deprecated parts of torch
            self.product = o3().TensorProduct(
                irreps, second, irreps, instructions, shared_weights=False, internal_weights=False
            )

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """As `PathProduct`; weights (n, paths, channels)."""
        found = self.product(self._flat(x), self._flat(y), weights.flatten(1))
        sizes = [self.channels * (2 * l + 1) for l in range(self.lmax + 1)]  # noqa: E741
        return torch.cat([part.unflatten(1, (self.channels, -1)) for part in found.split(sizes, 1)], 2)

    def _flat(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., block(l)].flatten(1) for l in range(self.lmax + 1)], 1)  # noqa: E741


class QHNet(SPHNet):
    """The network of this room with QHNet's skeleton: five convolutions, two pair layers, nothing left out.

    It stands for QHNet (Yu et al. 2023) where speed, memory and accuracy are compared: count and kind of its products
    are QHNet's; front end, weights of paths and expansion are those of `SPHNet`, so that the products make the
    difference. It is not the authors' code.

    Args:
        layout: basis and elements. lmax, channels: of the features; QHNet takes 4 and 128.
        convolutions: of spherical features. layers: of pair construction.
    Raises:
        ConfigError: as `SPHNet`.
    """

    def __init__(
        self, layout: Layout, lmax: int = 4, channels: int = 8, convolutions: int = 5, layers: int = 2, seed: int = 0
    ) -> None:
        shape = Shape(lmax, channels, layers, sparsity=0.0, seed=seed)
        super().__init__(layout, shape)
        self.convolution: Any = _Chain(shape, convolutions - 1)  # the first one is the lift
        layer: Any
        for layer in self.layers:
            layer.own.product, layer.between.product = (E3nnProduct(lmax, channels) for _ in range(2))


class _Chain(nn.Module):
    """Convolutions one after the other."""

    def __init__(self, shape: Shape, count: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Convolution(shape) for _ in range(count))
        for step in self.steps:
            step.product = E3nnProduct(shape.lmax, shape.channels, shared=True)

    def forward(self, x: Tensor, edges: Tensor, rbf: Tensor, directions: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x, edges, rbf, directions)
        return x
