"""EDSR-like networks: residual blocks of two convolutions, and pixels shuffled into place at the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from .resize import bicubic

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's pixels


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, same size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def upsampler(scale: int, width: int) -> nn.Sequential:
    """Convolutions and pixel shuffles: by 2 once or more, or by 3."""
    steps = [3] if scale == 3 else [2] * int(math.log2(scale))
    if math.prod(steps) != scale:
        raise ConfigError(f"cannot upsample by {scale}; the scale is 3 or a power of 2")
    return nn.Sequential(*(part for s in steps for part in (conv(width, width * s * s), nn.PixelShuffle(s))))


class Centred(nn.Module):
    """A network that works on pixels minus the mean colour; `mean` is no parameter."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)


class ResidualBlock(nn.Module):
    """x + factor conv(relu(conv(x)))."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(width, width), conv(width, width)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.conv2(F.relu(self.conv1(x)))


class EDSR(Centred):
    """(B, 3, h, w) in [0, 1] -> (B, 3, h scale, w scale).

    Args:
        width, depth: channels and residual blocks; EDSR-L has 256 and 32 with factor 0.1, the baseline 64, 16 and 1.
        skip: add the bicubic interpolation and start from it exactly, which short trainings need; not in the paper.
    Source: Lim et al. 2017.
    """

    def __init__(
        self, scale: int = 2, width: int = 256, depth: int = 32, factor: float = 0.1, skip: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.skip = scale, skip
        self.head = conv(3, width)
        self.body = nn.Sequential(*(ResidualBlock(width, factor) for _ in range(depth)), conv(width, width))
        last = conv(width, 3)
        self.tail = nn.Sequential(upsampler(scale, width), last)
        if skip:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.head(x - self.mean)
        out = self.tail(hidden + self.body(hidden))
        return out + (bicubic(x, self.scale) if self.skip else self.mean)
