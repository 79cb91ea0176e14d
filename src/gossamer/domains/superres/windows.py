"""Attention inside rectangular windows, plain or shifted: what SwinIR and CAT share."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def partition(x: Tensor, window: Size) -> Tensor:
    """(B, H, W, C) -> (B windows, h w, C)."""
    b, height, width, channels = x.shape
    h, w = window
    x = x.view(b, height // h, h, width // w, w, channels)
    return x.transpose(2, 3).reshape(-1, h * w, channels)


def merge(x: Tensor, window: Size, size: Size) -> Tensor:
    """The inverse of `partition` for images of `size`."""
    (h, w), (height, width) = window, size
    x = x.view(-1, height // h, width // w, h, w, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


@lru_cache(maxsize=32)
def shift_mask(size: Size, window: Size, shift: Size) -> Tensor:
    """(windows, 1, h w, h w) bool: which pixels of a shifted window were neighbours before the shift."""
    zones = torch.zeros(1, *size, 1)
    number = 0
    for rows in _cuts(size[0], window[0], shift[0]):
        for columns in _cuts(size[1], window[1], shift[1]):
            zones[:, rows, columns] = number
            number += 1
    flat = partition(zones, window).squeeze(-1)
    return (flat[:, None, :] == flat[:, :, None])[:, None]


def _cuts(length: int, window: int, shift: int) -> tuple[slice, ...]:
    if not shift:
        return (slice(0, length),)
    return slice(0, length - window), slice(length - window, length - shift), slice(length - shift, length)


def relative_index(window: Size) -> Tensor:
    """(h w, h w) int64: number of the offset between two pixels of a window, of (2h - 1)(2w - 1)."""
    h, w = window
    grid = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :]
    return (offset[0] + h - 1) * (2 * w - 1) + offset[1] + w - 1


def window_attention(qkv: Tensor, bias: Tensor, heads: int, window: Size, shift: Size) -> Tensor:
    """Multi-head attention within windows.

    Args:
        qkv: (B, H, W, 3 C). bias: (heads, h w, h w), added to the logits. shift: the windows are moved by so much.
    Returns:
        (B, H, W, C).
    """
    size = qkv.shape[1], qkv.shape[2]
    moved = any(shift)
    if moved:
        qkv = torch.roll(qkv, (-shift[0], -shift[1]), (1, 2))
    cut = partition(qkv, window)
    q, k, v = cut.view(*cut.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    if moved:
        mask = shift_mask(size, window, shift).to(qkv.device)
        bias = bias + torch.zeros(mask.shape, device=qkv.device, dtype=bias.dtype).masked_fill_(~mask, -100.0)
        bias = bias.repeat(len(cut) // len(mask), 1, 1, 1)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    out = merge(mixed.transpose(1, 2).flatten(2), window, size)
    return torch.roll(out, shift, (1, 2)) if moved else out


def padded(x: Tensor, multiple: Size) -> Tensor:
    """(B, C, H, W) mirrored at the lower and right border up to multiples of a size."""
    down, right = (-side % m for side, m in zip(x.shape[2:], multiple, strict=True))
    while down or right:  # a mirror is shorter than the image
        d, r = min(down, x.shape[2] - 1), min(right, x.shape[3] - 1)
        if not d and not r:
            return F.pad(x, (0, right, 0, down), mode="replicate")
        x = F.pad(x, (0, r, 0, d), mode="reflect")
        down, right = down - d, right - r
    return x
