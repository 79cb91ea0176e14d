"""Curves of FVU against L0 as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gossamer.runs.document import section, table, write_document

_COLOURS = ("#3b6fb6", "#c2553a", "#3f9a64", "#8a5fb0", "#b58a1c", "#3aa0ab", "#b64b86", "#6f7885")
_DASHES = ("", "6 3", "2 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 760, 430, 62, 150, 46, 12
_STYLE = """
svg text { fill: var(--soft); font-size: 12px; } svg .grid { stroke: var(--line); } svg .name { fill: var(--ink); }
"""


def write_curves(
    path: str | Path, title: str, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str], command: str = ""
) -> Path:
    """Write the page: a log-log chart, a line for each kind, and the table behind it.

    Args:
        rows: of `curves.sweep`: "kind", "k", "l0", "fvu" and other figures. facts: name -> text, above the chart.
        command: that made the page.
    """
    names = [name for name in rows[0] if name != "kind"]
    figures = table(
        [name.replace("_", " ") for name in ("kind", *names)],
        [[row["kind"], *(_shown(row[name]) for name in names)] for row in rows],
    )
    said = " · ".join(f"{name} {value}" for name, value in facts.items())
    body = section("", chart(rows)) + section("", figures)
    return write_document(path, title, body, lead=said, style=_STYLE, command=command)


def chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """The curves as SVG; arms without an active feature or without error have no place on logarithmic axes."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    points = {
        kind: sorted((row["l0"], row["fvu"]) for row in rows if row["kind"] == kind and min(row["l0"], row["fvu"]) > 0)
        for kind in kinds
    }
    every = [point for line in points.values() for point in line]
    if not every:
        return ""
    x, y = (_Axis([point[i] for point in every]) for i in (0, 1))
    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in x.ticks():
        at = _LEFT + x.place(tick) * (right - _LEFT)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{base}"/>')
        parts.append(f'<text x="{at:.1f}" y="{base + 17}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        at = base - y.place(tick) * (base - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number, (kind, line) in enumerate(points.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        placed = [(_LEFT + x.place(a) * (right - _LEFT), base - y.place(b) * (base - _TOP)) for a, b in line]
        way = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        parts.append(
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"><title>{escape(kind)}: L0 {p:.3g}, FVU {q:.3g}'
            "</title></circle>"
            for (a, b), (p, q) in zip(placed, line, strict=True)
        ]
        level = _TOP + 14 + 22 * number
        parts.append(
            f'<line x1="{right + 18}" x2="{right + 44}" y1="{level - 4}" y2="{level - 4}" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/><text class="name" x="{right + 50}" y="{level}">'
            f"{escape(kind)}</text>"
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="unexplained variance against active features">'
        f'{"".join(parts)}<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">active features of a '
        f'token (L0)</text><text transform="translate(15 {(base + _TOP) / 2}) rotate(-90)" text-anchor="middle">'
        "unexplained variance (FVU)</text></svg>"
    )


class _Axis:
    """A logarithmic axis over some values, with a little room at both ends."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05

    def place(self, value: float) -> float:
        """In [0, 1]."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """1, 2, 5 times powers of ten within the axis; powers alone where these would be many."""
        steps = (1.0, 2.0, 5.0) if self.high - self.low < 2.5 else (1.0,)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in found if self.low <= math.log10(tick) <= self.high]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
