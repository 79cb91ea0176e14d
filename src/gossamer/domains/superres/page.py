"""A page that shows a picture before and after upscaling, in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...runs.files import write_text
from .pictures import _pillow

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #181818); color-scheme: light dark; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 20rem; } img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #8886; }
"""
CROP = 96  # side of the enlarged detail, in pixels of the result


def write_page(
    path: str | Path, title: str, images: Mapping[str, Tensor], figures: Mapping[str, str], command: str = ""
) -> Path:
    """Write a page with pictures side by side, whole and in detail.

    Args:
        images: caption -> (3, h, w) in [0, 1], all of one size. figures: what else to say, name -> value.
        command: that made it.
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in figures.items())
    top, left = _liveliest(list(images.values())[-1])
    details = {name: image[:, top : top + CROP, left : left + CROP] for name, image in images.items()}
    body = (
        f"<h1>{escape(title)}</h1><table>{rows}</table>"
        f"<h2>Detail</h2>{_row(details, 4)}<h2>Whole</h2>{_row(images, 1)}"
        + (f"<p>Made by <code>{escape(command)}</code></p>" if command else "")
    )
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    write_text(Path(path), f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head>{body}</html>')
    return Path(path)


def _row(images: Mapping[str, Tensor], zoom: int) -> str:
    cells = (
        f'<figure><img alt="{escape(name)}" src="{_data(image, zoom)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, image in images.items()
    )
    return f'<div class="row">{"".join(cells)}</div>'


def _data(image: Tensor, zoom: int) -> str:
    """The image as a PNG inside an address, each pixel `zoom` times as large."""
    values = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = _pillow().fromarray(values)
    buffer = io.BytesIO()
    picture.resize((picture.width * zoom, picture.height * zoom), 0).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _liveliest(image: Tensor) -> tuple[int, int]:
    """Upper left corner of the square with the most contrast."""
    grey = image.mean(0)
    side = min(CROP, *grey.shape)
    spread = F.avg_pool2d(grey[None, None].square(), side, 8) - F.avg_pool2d(grey[None, None], side, 8).square()
    best = int(spread.argmax())
    return best // spread.shape[-1] * 8, best % spread.shape[-1] * 8
