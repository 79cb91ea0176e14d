"""Pictures of pushing: a strip of moments (PNG) and a closed-loop film (GIF)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MissingExtra
from ...runs.files import atomic
from .control import Episode
from .folded import Array

SIDE, SCALE = 320, 130.0  # pixels of a panel, pixels per unit of length
COLOURS = ("#2a78b8", "#c4622d", "#3f8f4f", "#8a5fb0")


def _panel(states: Array, goal: Array, radius: float, caption: str, middle: Array) -> Any:
    """The last state, with the paths that led there."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra("pillow", "dynamics") from error
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)

    def at(point: Array) -> tuple[float, float]:
        return SIDE / 2 + SCALE * (point[0] - middle[0]), SIDE / 2 - SCALE * (point[1] - middle[1])

    def ring(point: Array, size: float, **style: Any) -> None:
        x, y = at(point)
        draw.ellipse((x - size * SCALE, y - size * SCALE, x + size * SCALE, y + size * SCALE), **style)

    for disc in range(states.shape[1] // 2 - 1):
        own, colour = slice(2 * disc, 2 * disc + 2), COLOURS[disc % len(COLOURS)]
        ring(goal[own], radius, outline=colour, width=2)
        ring(states[-1, own], radius, fill=colour)
        if len(states) > 1:
            draw.line([at(s[own]) for s in states], fill="#000000", width=2)
    if len(states) > 1:
        draw.line([at(s[-2:]) for s in states], fill="#999999", width=1)
    ring(states[-1, -2:], 0.04, fill="#111111")
    draw.text((8, 6), caption, fill="#222222", font_size=15)
    return picture


def film(path: str | Path, episodes: Mapping[str, Episode], goal: Array, radius: float) -> Path:
    """Write a GIF that shows closed loops side by side, a frame for each step; the ring is the goal."""
    frames = _frames(episodes, goal, radius)
    with atomic(Path(path)) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=400, loop=0)
    return Path(path)


def strip(path: str | Path, episodes: Mapping[str, Episode], goal: Array, radius: float) -> Path:
    """Write a PNG of the ends of closed loops, side by side."""
    with atomic(Path(path)) as temporary:
        _frames(episodes, goal, radius)[-1].save(temporary, "PNG")
    return Path(path)


def _frames(episodes: Mapping[str, Episode], goal: Array, radius: float) -> list[Any]:
    from PIL import Image

    every = np.concatenate([e.states.reshape(-1, 2) for e in episodes.values()] + [goal.reshape(-1, 2)[:-1]])
    middle = (every.min(0) + every.max(0)) / 2
    frames = []
    for t in range(1, 1 + max(len(e.states) for e in episodes.values())):
        frame = Image.new("RGB", (SIDE * len(episodes), SIDE), "white")
        for index, (name, episode) in enumerate(episodes.items()):
            end = episode.states[:t]
            away = np.abs(end[-1, :-2] - goal[:-2]).sum()
            caption = f"{name}: step {len(end) - 1}, off by {away:.3f}"
            frame.paste(_panel(end, goal, radius, caption, middle), (SIDE * index, 0))
        frames.append(frame)
    return frames
