"""A visual prompt: the small target picture in the middle of the source's input, with learned pixels around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, ShapeError

BOUNDS = ("sigmoid", "tanh", "none")


class VisualPrompt(nn.Module):
    """x' = pad(x) + bound(theta) * M, then the source's normalisation; M is 1 outside the picture and 0 inside.

    Args:
        outer: (channels, height, width) of the source's input.
        inner: height and width of the picture inside it ("expand"), or the width of the frame ("frame").
        mode: "expand" puts the picture, resized to `inner`, into the middle; "frame" resizes it to the whole input
            and adds theta on a frame, without a bound unless one is asked for.
        bound: of the border: "sigmoid" (the authors'; zeros give grey 0.5), "tanh" or "none".
        scale: multiplies the border; 1 for pixels in [0, 1].
        mean, std: per channel, of the source's normalisation; None where the source has none.
    Raises:
        ConfigError: an inner size that leaves no border, a frame wider than half, an unknown mode or bound.
    Source: Misra et al. 2023, after Chen et al. 2023 (ILM-VP), section 3.
    """

    mask: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        outer: Sequence[int],
        inner: int,
        *,
        mode: str = "expand",
        bound: str | None = None,
        scale: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = outer
        if mode not in ("expand", "frame"):
            raise ConfigError(f"mode of a prompt is 'expand' or 'frame', got {mode!r}")
        self.bound = ("sigmoid" if mode == "expand" else "none") if bound is None else bound
        if self.bound not in BOUNDS:
            raise ConfigError(f"bound of a prompt must be one of {BOUNDS}, got {bound!r}")
        if mode == "expand" and not 1 <= inner < min(height, width):
            raise ConfigError(f"a picture of {inner} leaves no border in an input of {height} x {width}")
        if mode == "frame" and not 1 <= 2 * inner <= min(height, width):
            raise ConfigError(f"a frame of {inner} is wider than half of {height} x {width}")
        self.outer, self.inner, self.mode, self.scale = tuple(outer), inner, mode, scale
        rows, columns = self._margins(height), self._margins(width)
        mask = torch.ones(1, height, width)
        mask[:, rows[0] : height - rows[1], columns[0] : width - columns[1]] = 0
        self.register_buffer("mask", mask)
        self.register_buffer("mean", _per_channel(mean, channels, 0.0))
        self.register_buffer("std", _per_channel(std, channels, 1.0))
        self.theta = nn.Parameter(torch.zeros(channels, height, width))

    def _margins(self, size: int) -> tuple[int, int]:
        """Pixels before and after the picture: floor((S - s + 1) / 2) and floor((S - s) / 2)."""
        inner = self.inner if self.mode == "expand" else size - 2 * self.inner
        return (size - inner + 1) // 2, (size - inner) // 2

    def border(self) -> Tensor:
        """The learned pixels, 0 where the picture is: (channels, height, width)."""
        value = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "none": lambda t: t}[self.bound](self.theta)
        return self.scale * value * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, *outer). Raises ShapeError for another number of channels."""
        channels, height, width = self.outer
        if x.ndim != 4 or x.shape[1] != channels:
            raise ShapeError(f"the prompt is for pictures (B, {channels}, h, w), got {tuple(x.shape)}")
        whole = self.mode == "frame"
        size = (height, width) if whole else (self.inner, self.inner)
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        if not whole:
            rows, columns = self._margins(height), self._margins(width)
            x = F.pad(x, (*columns, *rows))
        return (x + self.border() - self.mean) / self.std


def _per_channel(values: Sequence[float] | None, channels: int, default: float) -> Tensor:
    if values is not None and len(values) != channels:
        raise ShapeError(f"{channels} channels need as many means and deviations, got {len(values)}")
    return torch.tensor([default] * channels if values is None else list(values)).view(-1, 1, 1)
