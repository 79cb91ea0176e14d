"""Figures of the report page as inline SVG whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gossamer.errors import MissingExtra
from gossamer.report.card import ReportCard

# Colours that a figure is drawn with, and the style variables that take their place in the page.
_INK, _FAINT, _PAPER = "#010203", "#040506", "#070809"
SERIES = ("#101112", "#131415", "#161718", "#191a1b", "#1c1d1e", "#1f2021", "#222324", "#252627")
_VARIABLES = {_INK: "--ink", _FAINT: "--line", _PAPER: "--panel"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}

_BARS = 48

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def colour(index: int) -> str:
    """The colour of arm number `index`; they repeat after eight."""
    return SERIES[index % len(SERIES)]


@contextmanager
def _canvas(name: str, width: float, height: float, columns: int = 1) -> Iterator[tuple[Any, list[Any], io.StringIO]]:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        out = io.StringIO()
        yield figure, list(figure.subplots(1, columns, squeeze=False)[0]), out
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def _inline(out: io.StringIO, name: str, label: str) -> str:
    """The bare <svg> element: themed, scalable, with ids of its own and a text for screen readers."""
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    for drawn, variable in _VARIABLES.items():
        svg = svg.replace(drawn, f"var({variable})")
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)


def metric_chart(cards: Sequence[ReportCard], scale: float = 1.0) -> str:
    """Mean of the metric per arm with its 95 % interval, and every seed as a dot."""
    shown = [(index, card) for index, card in enumerate(cards) if card.values]
    label = f"{cards[0].metric} of each method with its 95 % interval and every seed"
    with _canvas("metric", 6.2, 0.9 + 0.42 * len(shown)) as (_, (axes,), out):
        for row, (index, card) in enumerate(shown):
            estimate, ink = card.estimate, colour(index)
            if estimate is None:
                continue
            if estimate.n > 1:
                bar = [estimate.low * scale, estimate.high * scale]
                axes.plot(bar, [row, row], color=ink, linewidth=6, alpha=0.3, solid_capstyle="butt")
            axes.plot(estimate.mean * scale, row, "o", color=ink, markersize=8)
            axes.plot([value * scale for value in card.values], [row] * len(card.values), "|", color=_INK, markersize=9)
        axes.set_yticks(range(len(shown)), [card.method for _, card in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(cards[0].metric + (" (%)" if scale == 100 else ""))
    return _inline(out, "metric", label)


def curves_chart(cards: Sequence[ReportCard], quantity: str, scale: float = 1.0) -> str:
    """One quantity over the steps: each seed thin, the mean of seeds with equal steps thick."""
    name = re.sub(r"\W+", "-", f"curve-{quantity}")
    with _canvas(name, 5.4, 3.0) as (_, (axes,), out):
        for index, card in enumerate(cards):
            lines = [curve for curve in card.curves if curve.quantity == quantity]
            if not lines:
                continue
            for line in lines:
                axes.plot(line.steps, [v * scale for v in line.values], color=colour(index), linewidth=0.8, alpha=0.4)
            mean = lines[0].values
            if all(line.steps == lines[0].steps for line in lines):
                mean = [sum(v) / len(lines) for v in zip(*(line.values for line in lines), strict=True)]
            axes.plot(lines[0].steps, [v * scale for v in mean], color=colour(index), linewidth=2, label=card.method)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.set_xlabel("optimiser step")
        axes.set_title(quantity + (" (%)" if scale == 100 else ""))
        axes.legend(fontsize=9)
    return _inline(out, name, f"{quantity} over the optimiser steps")


def density_chart(cards: Sequence[ReportCard]) -> str:
    """Density of every layer of the sparse arms; logarithmic where one layer is below a tenth.

    Bars while there are at most `_BARS` of them; then one row of dots per layer, which stays readable.
    """
    arms = [(index, card) for index, card in enumerate(cards) if any(layer.kept < layer.numel for layer in card.layers)]
    names = list(dict.fromkeys(layer.name for _, card in arms for layer in card.layers))
    densities = [layer.density for _, card in arms for layer in card.layers if layer.kept]
    logarithmic = bool(densities) and min(densities) < 0.1
    floor = 10.0 ** _decade(min(densities)) if logarithmic else 0.0
    bars = len(arms) * len(names) <= _BARS
    height = max(0.26, 0.13 * len(arms)) if bars else 0.21
    with _canvas("density", 6.2, 1.0 + len(names) * height) as (_, (axes,), out):
        for place, (index, card) in enumerate(arms):
            rows = [names.index(layer.name) for layer in card.layers]
            values = [max(layer.density, floor) for layer in card.layers]
            style = {"color": colour(index), "label": card.method}
            if bars:
                thick = 0.8 / len(arms)
                at = [row + (place - (len(arms) - 1) / 2) * thick for row in rows]
                axes.barh(at, [v - floor for v in values], height=thick * 0.9, left=floor, **style)
            else:
                axes.plot(values, rows, "o", markersize=4.5, alpha=0.85, clip_on=False, **style)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xlim(floor, 1.0)
        axes.set_yticks(range(len(names)), names, fontsize=10 if bars else 8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(length=0, which="both")
        axes.grid(axis="both" if not bars else "x")
        axes.set_xlabel("density (kept share of weights)")
        if len(arms) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(arms)), fontsize=9)
    return _inline(out, "density", "density of every layer")


def _decade(value: float) -> int:
    power = 0
    while value < 10.0**power:
        power -= 1
    return power


def cost_chart(cards: Sequence[ReportCard]) -> str:
    """Training and inference FLOPs relative to dense, side by side."""
    parts: tuple[tuple[str, Callable[[ReportCard], float | None]], ...] = (
        ("training FLOPs / dense", lambda card: card.training_ratio),
        ("inference FLOPs / dense", lambda card: card.inference_ratio),
    )
    with _canvas("cost", 6.2, 0.9 + 0.36 * len(cards), columns=2) as (_, panels, out):
        for column, (axes, (title, value)) in enumerate(zip(panels, parts, strict=True)):
            for row, card in enumerate(cards):
                ratio = value(card)
                if ratio is not None:
                    axes.barh(row, ratio, height=0.62, color=colour(row))
                    axes.text(ratio, row, f" {ratio:.2f}", va="center", fontsize=9)
            axes.set_yticks(range(len(cards)), [card.method for card in cards] if column == 0 else [""] * len(cards))
            axes.set_ylim(len(cards) - 0.5, -0.5)
            axes.margins(x=0.18)
            axes.set_xlim(left=0)
            axes.tick_params(length=0)
            axes.set_title(title)
            axes.grid(axis="x")
    return _inline(out, "cost", "training and inference FLOPs of each method relative to dense")
