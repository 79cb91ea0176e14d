"""The table of a comparison, for a terminal, a paper, a README or a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gossamer.errors import unknown
from gossamer.maths.statistics import Estimate, paired_interval
from gossamer.report.card import Comparison, ReportCard

HEADINGS = (
    "method",
    "sparsity",
    "metric",
    "difference",
    "training FLOPs",
    "inference FLOPs",
    "bytes",
    "latency ms",
    "seeds",
)
ABSENT = "–"


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per card, keys as `HEADINGS`, values as numbers (None where absent).

    "difference" is the mean of metric minus control with its 95 % interval, paired where both ran the same seeds.
    """
    return [_row(card, comparison.dense) for card in comparison.cards]


def _row(card: ReportCard, control: ReportCard | None) -> dict[str, Any]:
    return {
        "method": card.method,
        "sparsity": card.sparsity_prunable,
        "metric": card.estimate,
        "difference": difference(card, control),
        "training FLOPs": card.training_ratio,
        "inference FLOPs": card.inference_ratio,
        "bytes": min(card.bytes_by_format.values(), default=None),
        "latency ms": min((t.milliseconds for t in card.latencies), default=None),
        "seeds": len(card.values),
    }


def difference(card: ReportCard, control: ReportCard | None) -> Estimate | None:
    """Paired interval of `card` minus `control`; None without a control or where the seeds differ."""
    if control is None or control.method == card.method or not card.values or card.seeds != control.seeds:
        return None
    return paired_interval(card.values, control.values)


def _spread(estimate: Estimate, scale: float, sign: bool, plus_minus: str) -> str:
    shown = f"{estimate.mean * scale:+.2f}" if sign else f"{estimate.mean * scale:.2f}"
    width = (estimate.high - estimate.mean) if sign else estimate.sd
    return shown if estimate.n < 2 else f"{shown} {plus_minus} {width * scale:.2f}"


def cells(comparison: Comparison, plus_minus: str = "±") -> list[list[str]]:
    """`rows` as text: metrics of fractions in points (x 100) with sd, differences with their interval's half-width."""
    scale = 100.0 if _is_fraction(comparison) else 1.0
    return [[_text(key, value, scale, plus_minus) for key, value in row.items()] for row in rows(comparison)]


def _is_fraction(comparison: Comparison) -> bool:
    return "acc" in comparison.cards[0].metric.lower()


def _text(key: str, value: Any, scale: float, plus_minus: str) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, Estimate):
        return _spread(value, scale, key == "difference", plus_minus)
    if key == "sparsity":
        return f"{value:.1%}"
    if key.endswith("FLOPs"):
        return f"{value:.3f}x"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def headings(comparison: Comparison) -> list[str]:
    """Column titles, with the metric's own name."""
    names = {"metric": comparison.cards[0].metric, "difference": f"vs {comparison.control}"}
    return [names.get(heading, heading) for heading in HEADINGS]


def _markdown(comparison: Comparison) -> str:
    lines = [headings(comparison), ["---"] * len(HEADINGS), *cells(comparison)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _csv(comparison: Comparison) -> str:
    """Numbers, not rounded; estimates as mean, sd, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spread = [f"{key} {part}" for key in ("metric", "difference") for part in ("mean", "sd", "low", "high")]
    plain = [heading for heading in HEADINGS if heading not in ("metric", "difference")]
    writer.writerow([*plain, *spread])
    for row in rows(comparison):
        estimates = (row["metric"], row["difference"])
        parts = [v for e in estimates for v in ((e.mean, e.sd, e.low, e.high) if e else ("",) * 4)]
        writer.writerow(["" if row[key] is None else row[key] for key in plain] + parts)
    return out.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", ABSENT: "--"}


def _latex(comparison: Comparison) -> str:
    def line(parts: Sequence[str]) -> str:
        escaped = ("".join(_LATEX.get(letter, letter) for letter in part) for part in parts)
        return " & ".join(escaped).replace("±", r"$\pm$") + r" \\"

    body = "\n".join(line(row) for row in cells(comparison))
    return (
        f"\\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}\n\\hline\n{line(headings(comparison))}\n"
        f"\\hline\n{body}\n\\hline\n\\end{{tabular}}\n"
    )


def _rich(comparison: Comparison) -> str:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=comparison.title)
    for index, heading in enumerate(headings(comparison)):
        shown.add_column(heading, justify="left" if index == 0 else "right")
    for row in cells(comparison):
        shown.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=140, force_terminal=False).print(shown)
    return out.getvalue()


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "rich": _rich,
    "md": _markdown,
    "latex": _latex,
    "csv": _csv,
}


def table(comparison: Comparison, format: str = "rich") -> str:
    """The comparison as a table in one of `FORMATS`. Raises ConfigError for another format."""
    if format not in FORMATS:
        raise unknown("table format", format, FORMATS)
    return FORMATS[format](comparison)


def plain_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """`rows` as JSON values: estimates as mappings of n, mean, sd, low, high, where one seed has no spread (None)."""
    return [{key: _plain(value) for key, value in row.items()} for row in rows(comparison)]


def _plain(value: Any) -> Any:
    if not isinstance(value, Estimate):
        return value
    return {key: None if math.isnan(part) else part for key, part in asdict(value).items()}
