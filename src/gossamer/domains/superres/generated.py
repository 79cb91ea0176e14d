"""Pictures that need no download: dead leaves, discs that cover one another, with the statistics of natural edges."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.dataset import generator
from .data import Pair
from .resize import degrade

_LEAVES = 31  # random stream


def dead_leaves(size: int = 96, seed: int = 0, discs: int = 300) -> Tensor:
    """(3, size, size) in [0, 1]: `discs` discs of random colour, radii with density 1 / r^3 from 2 to size / 3 pixels.

    Source: Lee, Mumford & Huang 2001.
    """
    rng = generator(seed, _LEAVES, size)
    grid = torch.arange(size).float()
    low, high = 2.0, size / 3
    u = torch.rand(discs, generator=rng)
    radii = (low**-2 + u * (high**-2 - low**-2)) ** -0.5
    centres = torch.rand(discs, 2, generator=rng) * size
    colours = torch.rand(discs, 3, generator=rng)
    image = colours[0].view(3, 1, 1).repeat(1, size, size)
    for radius, (y, x), colour in zip(radii.tolist(), centres.tolist(), colours, strict=True):
        distance = ((grid - y).square()[:, None] + (grid - x).square()).sqrt()
        cover = (radius + 0.5 - distance).clamp(0, 1)  # smooth over one pixel, as optics would
        image = image * (1 - cover) + colour.view(3, 1, 1) * cover
    return image


def leaf_pairs(count: int, scale: int, size: int = 96, seed: int = 0) -> list[Pair]:
    """Training or test pairs of dead leaves, as `read_pairs` gives them; `scale` must divide `size`."""
    pairs = []
    for number in range(count):
        high = (dead_leaves(size, seed * 100_003 + number) * 255).round() / 255
        pairs.append(((degrade(high, scale) * 255).round().to(torch.uint8), (high * 255).round().to(torch.uint8)))
    return pairs
