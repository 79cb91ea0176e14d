"""A page that shows a picture before and after upscaling, in one file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...runs.document import facts, picture, section, write_document
from .pictures import _pillow

CROP = 96  # side of the enlarged detail, in pixels of the result


def write_page(
    path: str | Path, title: str, images: Mapping[str, Tensor], figures: Mapping[str, str], command: str = ""
) -> Path:
    """Write a page with pictures side by side, whole and in detail.

    Args:
        images: caption -> (3, h, w) in [0, 1], all of one size. figures: what else to say, name -> value.
        command: that made it.
    """
    top, left = _liveliest(list(images.values())[-1])
    details = {name: image[:, top : top + CROP, left : left + CROP] for name, image in images.items()}
    body = section("", facts(figures)) + section("Detail", _row(details, 4)) + section("Whole", _row(images, 1))
    return write_document(path, title, body, command=command)


def _row(images: Mapping[str, Tensor], zoom: int) -> str:
    cells = (
        f"<figure>{picture(_png(image, zoom), name)}<figcaption>{escape(name)}</figcaption></figure>"
        for name, image in images.items()
    )
    return f'<div class="row">{"".join(cells)}</div>'


def _png(image: Tensor, zoom: int) -> bytes:
    """The image as a PNG, each pixel `zoom` times as large."""
    values = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    drawn = _pillow().fromarray(values)
    buffer = io.BytesIO()
    drawn.resize((drawn.width * zoom, drawn.height * zoom), 0).save(buffer, "PNG")
    return buffer.getvalue()


def _liveliest(image: Tensor) -> tuple[int, int]:
    """Upper left corner of the square with the most contrast."""
    grey = image.mean(0)
    side = min(CROP, *grey.shape)
    spread = F.avg_pool2d(grey[None, None].square(), side, 8) - F.avg_pool2d(grey[None, None], side, 8).square()
    best = int(spread.argmax())
    return best // spread.shape[-1] * 8, best % spread.shape[-1] * 8
