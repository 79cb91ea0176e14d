"""The page of an architecture search: a verdict, trajectories, learning curves, and the found cell as a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gossamer.architectures.space import View
from gossamer.report.figures import _FAINT, _INK, _PAPER, _canvas, _inline, colour
from gossamer.runs.document import section, write_document
from gossamer.runs.document import table as cells

Lines = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]  # name -> (x, y) of each seed


def write_page(
    path: Path,
    title: str,
    lead: str,
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    figures: Mapping[str, str],
    command: str = "",
) -> Path:
    """Write one self-contained page.

    Args:
        lead: a sentence under the title. table: headings and rows. figures: caption -> SVG. command: that made it.
    """
    drawn = "".join(section(name, f"<figure>{svg}</figure>") for name, svg in figures.items())
    body = f'{section("", cells(*table))}<div class="two">{drawn}</div>'
    return write_document(path, title, body, lead=lead, command=command)


def lines_chart(name: str, lines: Lines, x_label: str, y_label: str, *, logarithmic: bool = False) -> str:
    """Lines of several series: every seed thin, the mean of equally long ones thick. NaN leaves gaps."""
    with _canvas(name, 5.4, 3.0) as (_, (axes,), out):
        for index, (label, seeds) in enumerate(lines.items()):
            ink = colour(index)
            for x, y in seeds:
                axes.plot(x, y, color=ink, linewidth=0.8, alpha=0.4)
            equal = all(list(x) == list(seeds[0][0]) for x, _ in seeds)
            if seeds and equal:
                mean = [sum(values) / len(seeds) for values in zip(*(y for _, y in seeds), strict=True)]
                axes.plot(seeds[0][0], mean, color=ink, linewidth=2, label=label)
            elif seeds:
                axes.plot([], [], color=ink, linewidth=2, label=label)
        if logarithmic:
            axes.set_xscale("log")
        axes.grid(axis="y")
        axes.tick_params(length=0, which="both")
        axes.set_xlabel(x_label)
        axes.set_title(y_label)
        axes.legend(fontsize=9)
    return _inline(out, name, f"{y_label} over {x_label}")


def graph_chart(name: str, view: View) -> str:
    """An architecture as a graph from left to right; edges bend so that none hides another."""
    places = _layout(view)
    depth = max(x for x, _ in places)
    ys = [y for _, y in places]
    with _canvas(name, max(6.0, 1.9 * depth + 1.4), 1.3 + 1.3 * (max(ys) - min(ys))) as (_, (axes,), out):
        for start, end, label in view.edges:
            (x0, y0), (x1, y1) = places[start], places[end]
            bend = (0.2 if y1 + y0 < 0 else -0.2) * (x1 - x0 > 1.01)
            curve = {"arrowstyle": "-|>", "color": _INK, "lw": 0.9, "connectionstyle": f"arc3,rad={bend}"}
            axes.annotate("", (x1, y1), (x0, y0), arrowprops=curve | {"shrinkA": 22, "shrinkB": 24})
            along = 0.5 if x1 - x0 > 1.01 or abs(y1 - y0) < 0.1 else 0.3
            drop = -2.9 * bend * along * (1 - along) * (x1 - x0)
            box = {"boxstyle": "round,pad=0.15", "facecolor": _PAPER, "edgecolor": "none"}
            if label:
                place = x0 + along * (x1 - x0), y0 + along * (y1 - y0) + drop
                axes.text(*place, label, ha="center", va="center", fontsize=7.5, color=_INK, bbox=box)
        for index, (x, y) in enumerate(places):
            shape = {"boxstyle": "round,pad=0.45", "facecolor": _FAINT, "edgecolor": _INK, "linewidth": 0.8}
            axes.text(x, y, view.nodes[index], ha="center", va="center", fontsize=9, bbox=shape, zorder=4)
        axes.set_axis_off()
        axes.set_xlim(-0.5, depth + 0.5)
        axes.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
    return _inline(out, name, f"graph of {len(view.nodes)} nodes and {len(view.edges)} edges")


def _layout(view: View) -> list[tuple[float, float]]:
    """Column = longest path from a source; rows of a column around the middle, alternately shifted."""
    column = [0] * len(view.nodes)
    for _ in view.nodes:
        for start, end, _label in view.edges:
            column[end] = max(column[end], column[start] + 1)
    places: list[tuple[float, float]] = []
    for index, x in enumerate(column):
        peers = [i for i, other in enumerate(column) if other == x]
        shift = 0.8 * math.sin(2.1 * x) if len(peers) == 1 and max(column) > 1 and len(view.edges) > max(column) else 0
        places.append((float(x), (len(peers) - 1) / 2 - peers.index(index) + shift))
    return places
