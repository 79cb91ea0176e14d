"""Curves of FVU against L0 as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gossamer.runs.files import write_text

_COLOURS = ("#3b6fb6", "#c2553a", "#3f9a64", "#8a5fb0", "#b58a1c", "#3aa0ab", "#b64b86", "#6f7885")
_DASHES = ("", "6 3", "2 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 760, 430, 62, 150, 46, 12
_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2430, #dfe3ea); --faint: light-dark(#717b8b, #8b95a4);
  --line: light-dark(#e3e6ec, #333a45); --paper: light-dark(#f6f7f9, #14171c); --card: light-dark(#fff, #1c2128); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink); background: var(--paper); }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; } h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin: 1rem 0; overflow-x: auto; } .faint { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--faint); } th:first-child, td:first-child { text-align: left; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--faint); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .name { fill: var(--ink); }
code { font: 12px ui-monospace, monospace; overflow-wrap: anywhere; }
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
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ("kind", *names))
    body = "".join(
        f"<tr><td>{escape(row['kind'])}</td>" + "".join(f"<td>{_shown(row[name])}</td>" for name in names) + "</tr>"
        for row in rows
    )
    said = " · ".join(f"{escape(name)} {escape(value)}" for name, value in facts.items())
    made = f'<p class="faint">Made by <code>{escape(command)}</code></p>' if command else ""
    page = (
        f'<main><h1>{escape(title)}</h1><div class="faint">{said}</div><div class="card">{chart(rows)}</div>'
        f'<div class="card"><table><tr>{head}</tr>{body}</table></div>{made}</main>'
    )
    meta = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    write_text(Path(path), f'<!doctype html><html lang="en"><head>{meta}<style>{_STYLE}</style></head>{page}</html>')
    return Path(path)


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
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
