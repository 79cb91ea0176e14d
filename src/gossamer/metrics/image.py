"""Likeness of images: PSNR, SSIM, and the luma protocol of super-resolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError, unknown


def _check(a: Tensor, b: Tensor, data_range: float) -> None:
    if a.shape != b.shape:
        raise ShapeError(f"images must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not data_range > 0:
        raise ConfigError(f"data_range must be positive, got {data_range}")


def psnr(a: Tensor, b: Tensor, data_range: float = 1.0, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        a, b: any equal shape. data_range: largest minus smallest possible value (1 or 255).
        mask: bool, broadcastable to `a`: only these pixels count.

    >>> round(psnr(torch.zeros(4, 4), torch.full((4, 4), 0.1)), 4)
    20.0
    """
    _check(a, b, data_range)
    error = (a.double() - b.double()).square()
    if mask is not None:
        error = error[mask.expand_as(error)]
        if not error.numel():
            raise ShapeError("the mask selects no pixel")
    return float(10 * torch.log10(data_range**2 / error.mean()))


def _window(kind: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, float]:
    """The one-dimensional window, and the factor that turns its variances into those of the variant."""
    if kind == "gaussian":
        x = torch.arange(-5, 6, dtype=dtype, device=device)
        weights = torch.exp(-(x**2) / (2 * 1.5**2))
        return weights / weights.sum(), 1.0
    if kind == "uniform":
        return torch.full((7,), 1 / 7, dtype=dtype, device=device), 49 / 48
    raise unknown("window", kind, ("gaussian", "uniform"))


def ssim(a: Tensor, b: Tensor, data_range: float = 1.0, window: Literal["gaussian", "uniform"] = "gaussian") -> float:
    """Mean structural similarity over all positions where the window fits, all channels, all images.

    Args:
        a, b: (..., height, width), e.g. (n, channels, h, w); each side at least the window's.
        data_range: largest minus smallest possible value.
        window: "gaussian" is 11x11 with sigma 1.5 and population covariances (the original definition);
            "uniform" is 7x7 with sample covariances (scikit-image's default).
    Source: Wang, Bovik, Sheikh and Simoncelli 2004, with K1 = 0.01 and K2 = 0.03.
    """
    _check(a, b, data_range)
    taps, unbias = _window(window, torch.float64, a.device)
    side = len(taps)
    if a.ndim < 2 or min(a.shape[-2:]) < side:
        raise ShapeError(f"images must be at least {side}x{side}, got {tuple(a.shape[-2:])}")

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))

    x = a.double().reshape(-1, 1, *a.shape[-2:])
    y = b.double().reshape(-1, 1, *b.shape[-2:])
    mx, my = blur(x), blur(y)
    vx, vy, vxy = (unbias * (blur(p) - q) for p, q in ((x * x, mx * mx), (y * y, my * my), (x * y, mx * my)))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(similarity.mean())


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma in 16..235 (float64) of RGB in 0..1: (..., 3, h, w) -> (..., h, w)."""
    if rgb.ndim < 3 or rgb.shape[-3] != 3:
        raise ShapeError(f"needs RGB images (..., 3, height, width), got {tuple(rgb.shape)}")
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=rgb.device)
    return 16 + (rgb.double() * weights.view(3, 1, 1)).sum(-3)


def luma_psnr_ssim(a: Tensor, b: Tensor, border: int) -> tuple[float, float]:
    """PSNR and SSIM by the usual super-resolution protocol.

    Images are rounded to 8 bits, turned into luma, and cut by `border` pixels (the scale) on every side.

    Args:
        a, b: (3, h, w) or (n, 3, h, w) RGB in 0..1.
    """
    if border < 0:
        raise ConfigError(f"border must not be negative, got {border}")
    left, right = (luma((image.double().clamp(0, 1) * 255).round() / 255) for image in (a, b))
    if border:
        left, right = (y[..., border:-border, border:-border] for y in (left, right))
    return psnr(left, right, 255.0), ssim(left, right, 255.0)
