"""Vision transformers: a small one for small images, ViT-S/16 and ViT-B/16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.models.blocks import Attention, FeedForward


class Block(nn.Module):
    """Pre-norm transformer block: attention and feed-forward, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer (B, C, H, W) -> (B, classes) with a class token and learnt positions.

    Args:
        shape: (channels, height, width) of one input.
        classes: outputs.
        patch: side of a patch in pixels; must divide height and width.
        width: of the tokens.
        depth: number of blocks.
        heads: of the attention.
        hidden: width of the feed-forwards; default 4 * width.
    Raises:
        ConfigError: a patch that does not divide the image, or heads that do not divide the width.
    Source: Dosovitskiy et al. 2021.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % patch or breadth % patch:
            raise ConfigError(f"patch={patch} does not divide images of {height}x{breadth}")
        patches = (height // patch) * (breadth // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden or 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def vit_tiny(
    *,
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
) -> ViT:
    """A small ViT for digits (8, 12 or 16 pixels) and CIFAR; arguments as in `ViT`."""
    return ViT(shape=shape, classes=classes, patch=patch, width=width, depth=depth, heads=heads)


def vit_s16(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000) -> ViT:
    """ViT-S/16; 22,050,664 parameters."""
    return ViT(shape=shape, classes=classes, patch=16, width=384, depth=12, heads=6)


def vit_b16(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000) -> ViT:
    """ViT-B/16; 86,567,656 parameters."""
    return ViT(shape=shape, classes=classes, patch=16, width=768, depth=12, heads=12)
