"""The report page: one self-contained HTML file of a run or a comparison; nothing is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from gossamer import __version__
from gossamer.errors import MissingExtra
from gossamer.maths.statistics import Estimate
from gossamer.report import figures
from gossamer.report.card import Comparison, ReportCard, comparison
from gossamer.report.compare import ABSENT, difference
from gossamer.report.lint import RULES, lint
from gossamer.runs.document import house_style
from gossamer.runs.files import write_text

_FRACTIONS = ("acc", "auroc", "ece", "top")


def render(shown: Comparison | ReportCard) -> str:
    """The page of a comparison, or of a single card, as HTML text.

    The record itself is embedded as JSON in `<script type="application/json" id="record">`; every number in a table
    carries its full value in `data-value`.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "report") from error
    if isinstance(shown, ReportCard):
        shown = comparison([shown], title=f"{shown.method} on {shown.data}", command=shown.command)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "bytes": _bytes, "percent": _percent, "short": _short}
    template = environment.from_string(files("gossamer.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(**_view(shown))


def write(shown: Comparison | ReportCard, path: Path) -> Path:
    """Render into the file `path`, atomically."""
    write_text(path, render(shown))
    return path


def _view(shown: Comparison) -> dict[str, Any]:
    cards = shown.cards
    scale = scale_of(cards[0].metric)
    findings = lint(cards)
    return {
        "comparison": shown,
        "cards": cards,
        "version": __version__,
        "style": house_style(),
        "scale": scale,
        "metric": cards[0].metric + (" (%)" if scale == 100 else ""),
        "differences": {card.method: difference(card, shown.dense) for card in cards},
        "others": _others(cards),
        "scale_of": scale_of,
        "headline": _headline(shown, scale),
        "findings": [(finding, RULES[finding.code].asks) for finding in findings],
        "rules": len(RULES),
        "formats": list(dict.fromkeys(name for card in cards for name in card.bytes_by_format)),
        "layers": list(dict.fromkeys(layer.name for card in cards for layer in card.layers)),
        "densities": {card.method: {layer.name: layer for layer in card.layers} for card in cards},
        "figures": _figures(cards, scale),
        "absent": ABSENT,
        # "</" would end the script element
        "record": shown.to_json().replace("<", "\\u003c"),
    }


def _figures(cards: list[ReportCard], scale: float) -> dict[str, Any]:
    quantities = dict.fromkeys(curve.quantity for card in cards for curve in card.curves)
    has: dict[str, tuple[bool, Callable[[], str]]] = {
        "metric": (any(card.values for card in cards), lambda: figures.metric_chart(cards, scale)),
        "density": (_any_sparse(cards), lambda: figures.density_chart(cards)),
        "cost": (_any_cost(cards), lambda: figures.cost_chart(cards)),
    }
    drawn: dict[str, Any] = {name: draw() if wanted else "" for name, (wanted, draw) in has.items()}
    drawn["curves"] = [figures.curves_chart(cards, name, scale_of(name)) for name in quantities]
    return drawn


def _any_sparse(cards: list[ReportCard]) -> bool:
    return any(layer.kept < layer.numel for card in cards for layer in card.layers)


def _any_cost(cards: list[ReportCard]) -> bool:
    return any(card.training_ratio is not None or card.inference_ratio is not None for card in cards)


def _others(cards: list[ReportCard]) -> list[str]:
    return list(dict.fromkeys(name for card in cards for name in card.other_metrics))


def _headline(shown: Comparison, scale: float) -> list[tuple[str, str, str]]:
    """The figures at the top of the page (label, figure, remark): the sparsest method against the control."""
    control = shown.dense
    arms = [card for card in shown.cards if card.role == "method" and card is not control]
    card = max(arms, key=lambda c: c.sparsity_prunable or 0.0, default=shown.cards[0])
    tiles: list[tuple[str, str, str]] = []
    if card.estimate:
        against = f"{control.method}: {number(control.estimate, scale)}" if control and control.estimate else ""
        tiles.append((f"{card.metric}, {card.method}", number(card.estimate, scale), against))
    if card.sparsity_prunable is not None:
        remark = "" if card.sparsity_all is None else f"{_percent(card.sparsity_all)} of all parameters"
        tiles.append(("zeros in prunable weights", _percent(card.sparsity_prunable), remark))
    if card.inference_ratio is not None:
        tiles.append(("inference FLOPs", f"{card.inference_ratio:.3f}x", "of dense, theoretical"))
    if card.training_ratio is not None:
        tiles.append(("training FLOPs", f"{card.training_ratio:.3f}x", "of dense, theoretical"))
    if card.bytes_by_format:
        name, size = min(card.bytes_by_format.items(), key=lambda item: item[1])
        tiles.append(("smallest on disk", _bytes(size), name))
    if card.latencies:
        best = min(card.latencies, key=lambda t: t.milliseconds)
        tiles.append(("latency", f"{best.milliseconds:.3g} ms", f"{best.kernel}, batch {best.batch}"))
    return tiles


def scale_of(name: str) -> float:
    """100 for measures that are shown in percent, else 1."""
    return 100.0 if any(part in name.lower() for part in _FRACTIONS) else 1.0


def number(value: float | Estimate | None, scale: float = 1.0, digits: int = 2) -> str:
    """A number as text; an estimate as mean with its sd; a dash where there is none."""
    if value is None:
        return ABSENT
    if isinstance(value, Estimate):
        mean = f"{value.mean * scale:.{digits}f}"
        return mean if value.n < 2 else f"{mean} ± {value.sd * scale:.{digits}f}"
    return f"{value * scale:.{digits}f}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2%}".replace("%", " %")


def _short(value: float | None) -> str:
    if value is None:
        return ABSENT
    for unit, step in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= step:
            return f"{value / step:.4g} {unit}"
    return f"{value:.4g}"


def _bytes(size: int | None) -> str:
    if size is None:
        return ABSENT
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= step:
            return f"{size / step:.2f} {unit}"
    return f"{size} B"
