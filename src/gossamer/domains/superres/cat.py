"""CAT-R: attention in lying and standing rectangles, half of the heads each, with local detail added to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.blocks import FeedForward
from .edsr import Centred, conv, upsampler
from .swinir import Group, _normed
from .windows import Size, padded, relative_index, window_attention


class PositionBias(nn.Module):
    """A bias for each head from the offset of two pixels, by a small perceptron: (h w, h w) -> (heads, h w, h w)."""

    index: Tensor
    offsets: Tensor

    def __init__(self, width: int, heads: int, window: Size) -> None:
        super().__init__()
        h, w = window
        rows, columns = torch.arange(1.0 - h, h), torch.arange(1.0 - w, w)
        self.register_buffer("offsets", torch.cartesian_prod(rows, columns), persistent=False)
        self.register_buffer("index", relative_index(window), persistent=False)
        layers: list[nn.Module] = [nn.Linear(2, width)]
        for outputs in (width, width, heads):
            layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self) -> Tensor:
        return self.layers(self.offsets)[self.index].permute(2, 0, 1)


class CatBlock(nn.Module):
    """Rectangle-window attention and a feed-forward on (B, H, W, C).

    The first half of the channels sees windows of `window`, the second half of the same ones standing; every other
    block shifts them by half. A depthwise convolution of the values adds what windows cut apart.
    """

    def __init__(self, width: int, heads: int, window: Size, shifted: bool, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.windows = (window, (window[1], window[0]))
        self.bias = nn.ModuleList(PositionBias(max(4, width // 16), heads // 2, size) for size in self.windows)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = FeedForward(width, int(width * ratio))
        self.heads, self.shifted = heads // 2, shifted

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1))  # (B, H, W, 3, halves, C / 2)
        mixed = []
        for half, (window, bias) in enumerate(zip(self.windows, self.bias, strict=True)):
            shift = (window[0] // 2, window[1] // 2) if self.shifted else (0, 0)
            part = qkv[..., half, :].flatten(-2)
            mixed.append(window_attention(part, bias(), self.heads, window, shift))
        values = qkv[..., 2, :, :].flatten(-2).movedim(-1, 1)
        x = x + self.proj(torch.cat(mixed, -1) + self.local(values).movedim(1, -1))
        return x + self.mlp(self.norm2(x))


class CAT(Centred):
    """(B, 3, h, w) in [0, 1] -> (B, 3, h scale, w scale).

    Args:
        width, depths, heads, window, ratio: CAT-R's; `depths` counts the blocks of each group.
        final: channels behind the last group.
    Raises:
        ConfigError: an odd number of heads, or heads that do not divide the width.
    Source: Chen et al. 2022, the form with regular rectangles; ours in detail.
    """

    def __init__(
        self,
        scale: int = 2,
        width: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        heads: int = 6,
        window: Size = (4, 16),
        ratio: float = 4.0,
        final: int = 64,
    ) -> None:
        super().__init__()
        if heads % 2 or width % heads:
            raise ConfigError(f"needs an even number of heads that divides width {width}, got {heads}")
        self.scale, self.side = scale, max(window)
        self.head = conv(3, width)
        self.groups = nn.Sequential(
            *(Group([CatBlock(width, heads, window, i % 2 == 1, ratio) for i in range(n)], width) for n in depths)
        )
        self.norm, self.conv = nn.LayerNorm(width), conv(width, width)
        self.tail = nn.Sequential(conv(width, final), nn.LeakyReLU(0.01), upsampler(scale, final), conv(final, 3))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shallow = self.head(padded(x, (self.side, self.side)) - self.mean)
        out = self.tail(shallow + self.conv(_normed(self.norm, self.groups(shallow)))) + self.mean
        return out[:, :, : height * self.scale, : width * self.scale]
