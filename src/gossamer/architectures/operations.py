"""The operations of a cell's edges: convolutions, pooling, skip and none, each normalised (DARTS)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError

NONE = "none"
Maker = Callable[[int, int, bool], nn.Module]  # channels, stride, affine -> operation


class Zero(nn.Module):
    """No edge: zeros of the edge's output size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class FactorizedReduction(nn.Module):
    """Half the side by two 1x1 convolutions on shifted grids, joined. Raises ConfigError for odd output channels."""

    def __init__(self, inputs: int, outputs: int, affine: bool) -> None:
        super().__init__()
        if outputs % 2:
            raise ConfigError(f"a reduction needs an even number of channels, got {outputs}")
        self.even = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ShapeError(f"a reduction needs even sides, got {tuple(x.shape[-2:])}")
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


def relu_conv_norm(inputs: int, outputs: int, affine: bool) -> nn.Sequential:
    """ReLU, 1x1 convolution, normalisation."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine))


def _separable(c: int, kernel: int, stride: int, affine: bool, dilation: int = 1) -> list[nn.Module]:
    pad = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, kernel, stride, pad, dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        nn.BatchNorm2d(c, affine=affine),
    ]


def _sep(kernel: int) -> Maker:
    return lambda c, s, a: nn.Sequential(*_separable(c, kernel, s, a), *_separable(c, kernel, 1, a))


def _dil(kernel: int) -> Maker:
    return lambda c, s, a: nn.Sequential(*_separable(c, kernel, s, a, 2))


def _max_pool(c: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(c, affine=affine))


def _avg_pool(c: int, stride: int, affine: bool) -> nn.Module:
    pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    return nn.Sequential(pool, nn.BatchNorm2d(c, affine=affine))


def _skip(c: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduction(c, c, affine)


PRIMITIVES: dict[str, Maker] = {
    NONE: lambda c, stride, affine: Zero(stride),
    "max_pool_3x3": _max_pool,
    "avg_pool_3x3": _avg_pool,
    "skip_connect": _skip,
    "sep_conv_3x3": _sep(3),
    "sep_conv_5x5": _sep(5),
    "dil_conv_3x3": _dil(3),
    "dil_conv_5x5": _dil(5),
}
DARTS = tuple(PRIMITIVES)
