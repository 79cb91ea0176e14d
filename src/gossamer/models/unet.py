"""A small U-Net: image in, image of the same size out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import ConfigError, ShapeError
from gossamer.models.blocks import conv_bn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(inputs, outputs, 3, activation=nn.ReLU()), conv_bn(outputs, outputs, 3, activation=nn.ReLU())
    )


class UNet(nn.Module):
    """Encoder and decoder with skip connections: (B, C, H, W) -> (B, classes, H, W).

    Args:
        shape: (channels, height, width) of one input; the sides must be multiples of 2^(levels - 1).
        classes: channels of the result.
        channels: of the levels, from the full resolution down; each level halves the sides.
    Raises:
        ConfigError: fewer than two levels.
        ShapeError: sides that do not halve evenly, here or in `forward`.
    Source: Ronneberger et al. 2015, with "same" padding, batch normalisation and nearest-neighbour upsampling.
    """

    def __init__(
        self, *, shape: Sequence[int] = (1, 16, 16), classes: int = 1, channels: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ConfigError(f"a U-Net needs at least two levels, got channels={tuple(channels)}")
        self.multiple = 2 ** (len(channels) - 1)
        self._check(shape)
        self.down = nn.ModuleList(_double(*pair) for pair in pairwise([shape[0], *channels]))
        upward = list(reversed(channels))
        self.up = nn.ModuleList(_double(low + high, high) for low, high in pairwise(upward))
        self.head = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x.shape)
        skips = [self.down[0](x)]
        for level in self.down[1:]:
            skips.append(level(F.max_pool2d(skips[-1], 2)))
        hidden = skips.pop()
        for level in self.up:
            wide = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = level(torch.cat([wide, skips.pop()], dim=1))
        return self.head(hidden)

    def _check(self, shape: Sequence[int]) -> None:
        if any(side % self.multiple for side in shape[-2:]):
            raise ShapeError(f"sides of {tuple(shape)} must be multiples of {self.multiple} for this U-Net")
