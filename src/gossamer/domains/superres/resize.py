"""Bicubic resizing as MATLAB's `imresize` does it: the degradation that super-resolution benchmarks are made with."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2."""
    a = x.abs()
    near = 1.5 * a**3 - 2.5 * a**2 + 1
    far = -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2
    return torch.where(a <= 1, near, torch.where(a <= 2, far, 0.0))


@lru_cache(maxsize=64)
def _matrix(length: int, size: int, factor: float) -> Tensor:
    """(size, length) float64: each row weighs the pixels that one new pixel is made of.

    When shrinking, the kernel is stretched (antialiasing); beyond the border the image is mirrored.
    """
    stretch = min(1.0, factor)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) / factor - 0.5
    reach = 2 / stretch
    taps = torch.arange(math.ceil(2 * reach) + 2) + (centre - reach).floor().long()[:, None]
    weights = stretch * _cubic(stretch * (centre[:, None] - taps))
    weights = weights / weights.sum(1, keepdim=True)
    folded = taps.remainder(2 * length)
    folded = torch.where(folded < length, folded, 2 * length - 1 - folded)
    return torch.zeros(size, length, dtype=torch.float64).scatter_add_(1, folded, weights)


def bicubic(images: Tensor, factor: float) -> Tensor:
    """Resize images by a factor.

    Args:
        images: (..., h, w), any real dtype; computed in float64.
        factor: of both sides; below 1 it shrinks with antialiasing.
    Returns:
        (..., ceil(factor h), ceil(factor w)), of the type of `images` if that is a floating one, else float32.
        Values may lie slightly outside of the input's range.

    >>> bicubic(torch.ones(1, 3, 8, 6), 0.5).shape
    torch.Size([1, 3, 4, 3])
    """
    if not 0 < factor < math.inf:
        raise ConfigError(f"a resizing factor must be positive, got {factor}")
    if images.ndim < 2 or 0 in images.shape[-2:]:
        raise ShapeError(f"needs images (..., height, width), got {tuple(images.shape)}")
    kind = images.dtype if images.is_floating_point() else torch.float32
    sizes = [math.ceil(round(side * factor, 6)) for side in images.shape[-2:]]
    rows, columns = (
        _matrix(side, size, factor).to(images.device) for side, size in zip(images.shape[-2:], sizes, strict=True)
    )
    return (rows @ images.double() @ columns.t()).to(kind)


def degrade(images: Tensor, scale: int) -> Tensor:
    """The low-resolution form of images in [0, 1], rounded to 8 bits as if it had been saved.

    Args:
        images: (..., h, w) with sides that `scale` divides; `cropped` makes them so.
    Raises:
        ShapeError: `scale` does not divide a side.
    """
    height, width = images.shape[-2:]
    if height % scale or width % scale:
        raise ShapeError(f"scale {scale} does not divide an image of {height}x{width}; crop it first (cropped)")
    return (bicubic(images, 1 / scale).clamp(0, 1) * 255).round() / 255


def cropped(images: Tensor, scale: int) -> Tensor:
    """Images without the rows and columns at the lower and right border that exceed a multiple of `scale`."""
    height, width = images.shape[-2:]
    if min(height, width) < scale:
        raise ShapeError(f"an image of {height}x{width} is smaller than the scale {scale}")
    return images[..., : height - height % scale, : width - width % scale]
