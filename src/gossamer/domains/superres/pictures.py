"""Picture files: RGB, grey, with transparency, 8 or 16 bits, read into one form and written back in their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, MissingExtra
from ...runs.files import atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF"}


@dataclass(frozen=True)
class Picture:
    """A picture in memory.

    Attributes:
        rgb: (3, h, w) float32 in [0, 1]; a grey picture has three equal channels.
        alpha: (1, h, w) opacity, or None. grey, deep: whether the file was grey; had 16 bits (kept for grey ones).
    """

    rgb: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    deep: bool = False


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "superres") from error
    return Image


def read_picture(path: str | Path) -> Picture:
    """Read a picture file.

    Palettes become RGB. Of RGB files with 16 bits Pillow reads the upper 8; grey ones keep all 16.

    Raises:
        DataError: missing, damaged, of an unknown format, or of absurd size. MissingExtra: Pillow is not installed.
    """
    Image = _pillow()
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _picture(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read picture {path}: {error}") from error


def _picture(image: Any) -> Picture:
    mode = image.mode
    if mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"a grey picture holds values from {values.min()} to {values.max()}, not 0 to 65535")
        return Picture(_tensor(values, 65535).expand(3, -1, -1), grey=True, deep=True)
    if mode == "F":
        raise DataError("pictures of floating-point numbers have no white; save it with 8 or 16 bits")
    clear = "A" in image.getbands() or "transparency" in image.info
    grey = mode in ("L", "LA", "1")
    pixels = _tensor(np.array(image.convert(("LA" if clear else "L") if grey else "RGBA" if clear else "RGB")), 255)
    colours, alpha = (pixels[:-1], pixels[-1:]) if clear else (pixels, None)
    return Picture(colours.expand(3, -1, -1), alpha, grey)


def _tensor(values: Any, white: int) -> Tensor:
    pixels = torch.from_numpy(values.astype(np.float32) / np.float32(white))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write a picture, grey where it was grey, with its opacity; atomically.

    Raises:
        DataError: an unknown file suffix, or opacity in a JPEG or BMP.
    """
    Image, path = _pillow(), Path(path)
    form = _WRITABLE.get(path.suffix.lower())
    if form is None:
        raise DataError(f"cannot write {path}: choose one of {', '.join(_WRITABLE)}")
    if (picture.alpha is not None or picture.deep) and form in ("JPEG", "BMP"):
        raise DataError(f"{path.suffix} holds no transparency and no 16 bits; write a .png")
    white = 65535 if picture.deep else 255
    colours = picture.rgb.mean(0, keepdim=True) if picture.grey else picture.rgb
    layers = colours if picture.alpha is None else torch.cat([colours, picture.alpha])
    values = (layers.double().clamp(0, 1) * white).round().permute(1, 2, 0).numpy()
    image = Image.fromarray(
        values.astype(np.uint16 if picture.deep else np.uint8).squeeze(-1)
        if len(layers) == 1
        else values.astype(np.uint8)
    )
    with atomic(path) as temporary:
        image.save(temporary, format=form)


def picture_files(folder: str | Path) -> list[Path]:
    """The picture files of a folder, by name. Raises DataError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return found
