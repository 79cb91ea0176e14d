"""Training patches and test images from folders of pictures, as DIV2K lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data.dataset import generator
from ...errors import ConfigError, DataError, ShapeError
from .pictures import picture_files, read_picture
from .resize import cropped, degrade

_CROP = 21  # random stream of patches
Pair = tuple[Tensor, Tensor]  # low (3, h, w) and high (3, h scale, w scale), uint8


def read_pairs(folder: str | Path, scale: int, low: str | Path | None = None, limit: int | None = None) -> list[Pair]:
    """Pairs of every picture of a folder, its lower and right border cut to a multiple of the scale.

    Args:
        folder: of high-resolution pictures (DIV2K_train_HR). Opacity is ignored.
        low: folder of the low-resolution ones, NAMExSCALE.png or NAME.png (DIV2K_train_LR_bicubic/X2); None makes
            them by `degrade`. limit: take the first so many.
    Raises:
        DataError: no pictures, or one without its counterpart. ShapeError: sizes that do not fit the scale.
    """
    check_scale(scale)
    pairs = []
    for path in picture_files(folder)[:limit]:
        high = read_picture(path).rgb
        if low is None:
            if min(high.shape[1:]) < scale:
                raise ShapeError(f"{path} has {high.shape[1]}x{high.shape[2]} pixels, fewer than the scale {scale}")
            high = cropped(high, scale)
            pairs.append((_bytes(degrade(high, scale)), _bytes(high)))
            continue
        partner = _partner(path, Path(low), scale)
        small = read_picture(partner).rgb
        height, width = (side * scale for side in small.shape[1:])
        if not (0 <= high.shape[1] - height < scale and 0 <= high.shape[2] - width < scale):
            raise ShapeError(
                f"{partner} of {small.shape[1]}x{small.shape[2]} times {scale} is not {path} of "
                f"{high.shape[1]}x{high.shape[2]}"
            )
        pairs.append((_bytes(small), _bytes(high[:, :height, :width])))
    return pairs


def check_scale(scale: int) -> None:
    """Raise ConfigError unless the scale is one of 2, 3, 4, 8."""
    if scale not in (2, 3, 4, 8):
        raise ConfigError(f"the scale of super-resolution is 2, 3, 4 or 8, got {scale}")


def _partner(path: Path, low: Path, scale: int) -> Path:
    for name in (f"{path.stem}x{scale}{path.suffix}", path.name):
        if (low / name).is_file():
            return low / name
    raise DataError(f"{low} holds neither {path.stem}x{scale}{path.suffix} nor {path.name}")


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Patches:
    """Random patches, flipped and turned; `batch(step)` depends on (seed, step) alone.

    Args:
        pairs: as `read_pairs` gives them. patch: side of the high-resolution patch in pixels, a multiple of scale.
    Raises:
        ConfigError: a patch that the scale does not divide. DataError: a picture smaller than the patch, or none.
    """

    pairs: list[Pair]
    scale: int
    patch: int = 64
    batch_size: int = 16
    seed: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.patch < 1 or self.patch % self.scale or self.batch_size < 1:
            raise ConfigError(
                f"needs a patch that scale {self.scale} divides and batch_size >= 1, "
                f"got {self.patch} and {self.batch_size}"
            )
        if not self.pairs:
            raise DataError("there are no pictures to take patches from")
        for number, (_, high) in enumerate(self.pairs):
            if min(high.shape[1:]) < self.patch:
                raise DataError(
                    f"picture {number} has {high.shape[1]}x{high.shape[2]} pixels, "
                    f"the patch {self.patch}x{self.patch}; take a smaller patch, or leave it out"
                )

    def __len__(self) -> int:
        """Batches in which every picture is used about once."""
        return max(1, len(self.pairs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch(step) for step in range(len(self)))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(low (b, 3, p / scale, p / scale), high (b, 3, p, p)), float32 in [0, 1]."""
        rng = generator(self.seed, _CROP, step)
        drawn = [self._patch(rng) for _ in range(self.batch_size)]
        low, high = (torch.stack(side).float() / 255 for side in zip(*drawn, strict=True))
        return low, high

    def _patch(self, rng: torch.Generator) -> Pair:
        low, high = self.pairs[int(torch.randint(len(self.pairs), (1,), generator=rng))]
        side = self.patch // self.scale
        top, left = (int(torch.randint(n - side + 1, (1,), generator=rng)) for n in low.shape[1:])
        one = low[:, top : top + side, left : left + side]
        top, left = top * self.scale, left * self.scale
        two = high[:, top : top + self.patch, left : left + self.patch]
        turn = int(torch.randint(8, (1,), generator=rng)) if self.augment else 0
        return _turned(one, turn), _turned(two, turn)


def _turned(image: Tensor, turn: int) -> Tensor:
    """One of the eight symmetries of a square."""
    return torch.rot90(image.flip(2) if turn >= 4 else image, turn % 4, (1, 2))
