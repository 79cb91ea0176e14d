"""Image transforms on whole batches, in plain torch: scaling, flips, crops.

Each is a frozen dataclass called as `transform(images, generator)`; images (B, C, H, W), uint8 or float.
Random ones draw from the generator alone, so that a batch is a function of (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import ShapeError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Chain:
    """Transforms one after the other."""

    def __init__(self, *parts: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        self.parts = parts

    def __call__(self, images: Tensor, source: torch.Generator) -> Tensor:
        for part in self.parts:
            images = part(images, source)
        return images


@dataclass(frozen=True)
class Normalise:
    """uint8 to [0, 1] (floats are taken as they are), then (x - mean) / std per channel.

    Raises:
        ShapeError: the images' channels differ from the number of means.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor, _: torch.Generator) -> Tensor:
        if images.shape[1] != len(self.mean):
            raise ShapeError(f"{len(self.mean)} channel means for images of shape {tuple(images.shape)}")
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        mean = torch.tensor(self.mean, dtype=scaled.dtype).view(1, -1, 1, 1)
        return (scaled - mean) / torch.tensor(self.std, dtype=scaled.dtype).view(1, -1, 1, 1)


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors each image left to right with probability `chance`."""

    chance: float = 0.5

    def __call__(self, images: Tensor, source: torch.Generator) -> Tensor:
        flipped = torch.rand(len(images), generator=source) < self.chance
        return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


@dataclass(frozen=True)
class RandomCrop:
    """Pads with zeros by `padding` pixels on each side and cuts the old size at a random place."""

    padding: int = 4

    def __call__(self, images: Tensor, source: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        padded = F.pad(images, (self.padding,) * 4)
        top = torch.randint(2 * self.padding + 1, (count, 1, 1), generator=source)
        left = torch.randint(2 * self.padding + 1, (count, 1, 1), generator=source)
        rows = top + torch.arange(height).view(1, -1, 1)
        columns = left + torch.arange(width).view(1, 1, -1)
        # Index tensors around a slice put the channels last.
        cut = padded[torch.arange(count).view(-1, 1, 1), :, rows, columns]
        return cut.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of each image, resized to `size` x `size` with antialiasing.

    Args:
        size: side of the result in pixels.
        scale: range of the part's share of the area.
        ratio: range of width / height, drawn log-uniformly.
    Source: Szegedy et al. 2015, section 6 (the usual training crop on ImageNet).
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, images: Tensor, source: torch.Generator) -> Tensor:
        return torch.stack([self._crop(image, torch.rand(4, generator=source)) for image in images])

    def _crop(self, image: Tensor, drawn: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        share, shape, down, right = drawn.tolist()
        area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = math.exp(low + shape * (high - low))
        w = min(width, max(1, round(math.sqrt(area * ratio))))
        h = min(height, max(1, round(math.sqrt(area / ratio))))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        return resize(image[None, :, top : top + h, left : left + w], self.size)[0]


@dataclass(frozen=True)
class CenterCrop:
    """The middle `size` x `size` pixels."""

    size: int

    def __call__(self, images: Tensor, _: torch.Generator) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise ShapeError(f"cannot cut {self.size} pixels from images of {height}x{width}")
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return images[:, :, top : top + self.size, left : left + self.size]


def resize(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, C, size, size), bilinear with antialiasing; uint8 stays uint8."""
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(images.dtype) if images.dtype == torch.uint8 else resized
