"""SwinIR: shifted-window transformer blocks in residual groups, for restoring images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.blocks import FeedForward
from .edsr import Centred, conv
from .windows import padded, relative_index, window_attention


class SwinBlock(nn.Module):
    """Window attention and a feed-forward on (B, H, W, C), each behind a norm and added to its input."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int, shift: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_index((window, window)), persistent=False)
        self.mlp = FeedForward(width, int(width * ratio))
        self.heads, self.window, self.shift = heads, (window, window), (shift, shift)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[self.index].permute(2, 0, 1)
        x = x + self.proj(window_attention(self.qkv(self.norm1(x)), bias, self.heads, self.window, self.shift))
        return x + self.mlp(self.norm2(x))


class Group(nn.Module):
    """Blocks on channels-last pixels, then a convolution, around a shortcut."""

    def __init__(self, blocks: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.blocks, self.conv = nn.Sequential(*blocks), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x.movedim(1, -1)).movedim(-1, 1))


class SwinIR(Centred):
    """(B, 3, h, w) in [0, 1] -> (B, 3, h scale, w scale); the lightweight form, with one convolution at the end.

    Args:
        width, depths, heads, window, ratio: the lightweight network's; `depths` counts the blocks of each group.
    Raises:
        ConfigError: heads that do not divide the width.
    Source: Liang et al. 2021.
    """

    def __init__(
        self,
        scale: int = 2,
        width: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        heads: int = 6,
        window: int = 8,
        ratio: float = 2.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"{heads} heads do not divide width {width}")
        self.scale, self.window = scale, window
        self.head = conv(3, width)
        self.embed_norm = nn.LayerNorm(width)
        self.groups = nn.Sequential(
            *(
                Group([SwinBlock(width, heads, window, window // 2 * (i % 2), ratio) for i in range(depth)], width)
                for depth in depths
            )
        )
        self.norm, self.conv = nn.LayerNorm(width), conv(width, width)
        self.tail = nn.Sequential(conv(width, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shallow = self.head(padded(x, (self.window, self.window)) - self.mean)
        deep = self.groups(_normed(self.embed_norm, shallow))
        out = self.tail(shallow + self.conv(_normed(self.norm, deep))) + self.mean
        return out[:, :, : height * self.scale, : width * self.scale]


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer normalisation over the channels of (B, C, H, W)."""
    return norm(x.movedim(1, -1)).movedim(-1, 1)
