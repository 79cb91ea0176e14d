"""Pictures in files as the pixels that a vision transformer takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import DataError, MissingExtra


@dataclass(frozen=True)
class Pixels:
    """How a checkpoint wants its pictures: side in pixels, mean and deviation of the three channels in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, model: Path, size: int, mean: Sequence[float], std: Sequence[float]) -> Pixels:
        """What `preprocessor_config.json` of a checkpoint folder says, else the given mean and deviation."""
        try:
            config = json.loads((model / "preprocessor_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = {}
        first, second = (tuple(map(float, config.get(f"image_{n}", v))) for n, v in (("mean", mean), ("std", std)))
        return cls(size, first, second)  # type: ignore[arg-type]

    def read(self, path: Path) -> Tensor:
        """(3, S, S): shorter side to S by bicubic interpolation, the centre cut out, normalised.

        Raises:
            DataError: no picture that can be read. MissingExtra: pillow.
        """
        try:
            from PIL import Image
        except ImportError:
            raise MissingExtra("pillow", "superres") from None
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from None
        scale = self.size / min(image.size)
        wide, high = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy() / 255)
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)
