"""Pictures of closed loops: their ends side by side (PNG), and a film (GIF)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MissingExtra
from ...runs.files import atomic
from .control import Episode
from .folded import Array
from .study import Scene

SIDE, MARGIN = 320, 34  # pixels of a panel, and of its rim
COLOURS = ("#2a78b8", "#c4622d", "#3f8f4f", "#8a5fb0")
INK, FAINT = "#222222", "#999999"


def film(path: str | Path, episodes: Mapping[str, Episode], scene: Scene) -> Path:
    """Write a GIF that shows closed loops side by side, a frame for each step; rings or frames are the goals."""
    frames = _frames(episodes, scene)
    with atomic(Path(path)) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=500, loop=0)
    return Path(path)


def strip(path: str | Path, episodes: Mapping[str, Episode], scene: Scene) -> Path:
    """Write a PNG of the ends of closed loops, side by side."""
    with atomic(Path(path)) as temporary:
        _frames(episodes, scene)[-1].save(temporary, "PNG")
    return Path(path)


class _Panel:
    """One picture of a state, in units of length around a middle."""

    def __init__(self, middle: Array, scale: float) -> None:
        try:
            from PIL import Image, ImageDraw
        except ImportError as error:
            raise MissingExtra("pillow", "dynamics") from error
        self.image = Image.new("RGB", (SIDE, SIDE), "white")
        self.draw, self.middle, self.scale = ImageDraw.Draw(self.image), middle, scale

    def at(self, point: Array) -> tuple[float, float]:
        x, y = self.scale * (point - self.middle)
        return SIDE / 2 + x, SIDE / 2 - y + 8

    def ring(self, point: Array, size: float, **style: Any) -> None:
        (x, y), r = self.at(point), size * self.scale
        self.draw.ellipse((x - r, y - r, x + r, y + r), **style)

    def line(self, points: Any, **style: Any) -> None:
        self.draw.line([self.at(p) for p in points], **style)

    def frame(self, middle: Array, half: Array, colour: str) -> None:
        (left, top), (right, bottom) = self.at(middle + half * [-1, 1]), self.at(middle + half * [1, -1])
        self.draw.rectangle((left, top, right, bottom), outline=colour, width=2)


def _goals(panel: _Panel, scene: Scene) -> None:
    goal, n = scene.problem.goal, scene.bodies
    target, band = (values[: 2 * n].reshape(n, 2) for values in (goal.target, goal.free))
    for body in range(n):
        colour = COLOURS[scene.classes[body] % len(COLOURS)] if scene.classes else FAINT
        if band[body].any():
            panel.frame(target[body], band[body], colour)
        else:
            panel.ring(target[body], scene.radius, outline=colour, width=2)
    for i, j in scene.links:
        panel.line((target[i], target[j]), fill=FAINT, width=2)


def _panel(episode: Episode, step: int, scene: Scene, caption: str, view: tuple[Array, float]) -> Any:
    """The state after `step` steps, with the ways that led there."""
    panel, n = _Panel(*view), scene.bodies
    _goals(panel, scene)
    ways = episode.states[: step + 1, : 2 * n].reshape(-1, n, 2)
    for i, j in scene.links:
        panel.line((ways[-1, i], ways[-1, j]), fill=COLOURS[0], width=4)
    for body in range(n):
        colour = COLOURS[scene.classes[body] % len(COLOURS)] if scene.classes else COLOURS[0]
        panel.ring(ways[-1, body], scene.radius, fill=colour)
        if step and not scene.links:
            panel.line(ways[:, body], fill="#000000", width=1)
    if not scene.placed:
        tool = episode.states[: step + 1, -2:]
        if step:
            panel.line(tool, fill=FAINT, width=1)
        panel.ring(tool[-1], 0.035, fill=INK)
    elif step:
        where, stroke = episode.actions[step - 1, :2], episode.actions[step - 1, 2:]
        panel.line((where, where + stroke), fill=INK, width=3)
        panel.ring(where + stroke, 0.035, fill=INK)
    for row, line in enumerate(caption.split("\n")):
        panel.draw.text((8, 5 + 17 * row), line, fill=INK, font_size=14)
    return panel.image


def _view(episodes: Mapping[str, Episode], scene: Scene) -> tuple[Array, float]:
    """Middle and pixels per length at which everything is in the picture."""
    n = 2 * scene.bodies
    goal = scene.problem.goal
    moved = [e.states.reshape(len(e.states), -1, 2).reshape(-1, 2) for e in episodes.values()]
    ends = [(goal.target + side * goal.free)[:n].reshape(-1, 2) for side in (-1, 1)]
    every = np.concatenate([*moved, *ends])
    low, high = every.min(0) - scene.radius, every.max(0) + scene.radius
    return (low + high) / 2, (SIDE - 2 * MARGIN) / float((high - low).max())


def _frames(episodes: Mapping[str, Episode], scene: Scene) -> list[Any]:
    view, frames = _view(episodes, scene), []
    for step in range(max(len(e.states) for e in episodes.values())):
        panels = []
        for name, episode in episodes.items():
            last = min(step, len(episode.states) - 1)
            away = scene.distances(episode.states[last : last + 1])[0]
            home = scene.arrived(episode.states[last])
            caption = f"{name}, step {last}\noff by {away:.3f}, {home} of {scene.bodies} there"
            panels.append(_panel(episode, last, scene, caption, view))
        frames.append(_side_by_side(panels))
    return frames


def _side_by_side(panels: list[Any]) -> Any:
    from PIL import Image

    frame = Image.new("RGB", (SIDE * len(panels), SIDE), "white")
    for index, panel in enumerate(panels):
        frame.paste(panel, (SIDE * index, 0))
    return frame
