"""Pictures: misses over storage, and where the weights of sparse models lie."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError, MissingExtra
from ...runs.document import picture, section, table, write_document
from ...runs.files import atomic
from .budgets import Point
from .encode import Encoded
from .identify import Finding, SparseReport
from .simulate import Result

_INK = ("#0b6e99", "#c44e28", "#3c7d3c", "#7a4fa3", "#b58900", "#555555", "#c2185b", "#00838f")
SHOWN = 8  # models that a picture shows
SPAN = 3  # a panel with rates further apart than this factor is logarithmic


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def sweep_picture(points: Sequence[Point], path: str | Path) -> Path:
    """Misses over storage, one panel per trace, one line per predictor, as PNG.

    Raises:
        ConfigError: no points. MissingExtra: no matplotlib. CheckpointError: the file cannot be written.
    """
    if not points:
        raise ConfigError("nothing to draw: the sweep holds no points")
    traces, kinds = (list(dict.fromkeys(getattr(p, name) for p in points)) for name in ("trace", "kind"))
    columns = min(2, len(traces))
    rows = -(-len(traces) // columns)
    figure, axes = _figure(5.2 * columns, 3.6 * rows, rows, columns)
    for place, trace in enumerate(traces):
        panel = axes[place // columns][place % columns]
        for index, kind in enumerate(kinds):
            line = sorted((p for p in points if p.trace == trace and p.kind == kind), key=lambda p: p.budget)
            style = {"color": _INK[index % len(_INK)], "linestyle": "-" if index < len(_INK) else "--"}
            rates = [max(100 * p.miss_rate, 1e-4) for p in line]
            panel.plot([p.bits / 8192 for p in line], rates, "o", markersize=3.5, label=kind, **style)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        heights = [point.miss_rate for point in points if point.trace == trace]
        if max(heights) > SPAN * max(min(heights), 1e-6):
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        panel.set_title(trace, loc="left", fontsize=10)
        panel.set_xlabel("storage (KB)")
        panel.set_ylabel("misses (% of branches)")
        panel.grid(alpha=0.3, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    for place in range(len(traces), rows * columns):
        axes[place // columns][place % columns].set_visible(False)
    axes[0][0].legend(fontsize=8, frameon=False)
    path = Path(path)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def weights_picture(report: SparseReport) -> bytes:
    """PNG of the weights of the models that spare most, over their positions: past of all branches, own past."""
    window = report.search.window
    shown = _with_terms(report)[:SHOWN]
    figure, axes = _figure(9.5, 0.6 + 1.05 * max(1, len(shown)), max(1, len(shown)), 1)
    marks = [*range(64, window.history + 1, 64)]
    for panel, finding in zip(axes[:, 0], shown, strict=False):
        panel.set_xticks([*marks, window.size], [*map(str, marks), "own"])
        _stems(panel, finding, window.history)
        panel.set_xlim(-4, window.size + 4)
        panel.axvline(window.history + 0.5, color="#999999", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(f"{finding.pc:#x}   {finding.baseline:.3f} to {finding.accuracy:.3f}", loc="left", fontsize=8)
        panel.tick_params(labelsize=7, labelbottom=False)
    last = axes[-1, 0]
    last.tick_params(labelbottom=True)
    last.set_xlabel("branches ago", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _with_terms(report: SparseReport) -> list[Finding]:
    """The sparse models that read the history at all; a model may also be one outcome for good."""
    return [finding for finding in report.sparse if finding.model is not None and len(finding.model.support)]


def _stems(panel: Any, finding: Finding, history: int) -> None:
    assert finding.model is not None
    for feature in finding.model.support:
        weight, own = float(finding.model.weights[feature]), feature >= history
        panel.vlines(feature + 1, 0, weight, color=_INK[1] if own else _INK[0], linewidth=1.6)
    panel.axhline(0, color="#999999", linewidth=0.6)


def write_page(
    path: str | Path, report: SparseReport, encoding: Encoded, results: Sequence[Result], command: str = ""
) -> Path:
    """One HTML file: what the hybrid does to the misses, where the weights lie, and every branch that was tried."""
    title = f"Sparse correlations in {report.trace.name}"
    first = results[0].misses
    rows = [
        (
            r.predictor,
            f"{r.bits / 8192:.2f}",
            f"{r.misses}",
            f"{100 * r.miss_rate:.3f}",
            f"{100 * (r.misses / first - 1):+.2f} %",
        )
        for r in results
        if first
    ]
    encoded = {finding.pc for finding in encoding.findings}
    reasons = dict(encoding.dropped)
    tried = [
        (
            f"{f.pc:#x}",
            f"{f.executed}",
            f"{f.misses}",
            f"{f.baseline:.4f}",
            f"{f.accuracy:.4f}",
            f"{len(f.model.support)}" if f.model else "",
            "in the table" if f.pc in encoded else f.reason or reasons.get(f.pc, ""),
        )
        for f in report.findings
    ]
    lead = (
        f"Misses on the {results[0].branches} branches behind the profile of {report.profile}; the table takes "
        f"{encoding.side.bits} bits."
    )
    body = section("Predictors", table(("predictor", "KB", "misses", "% of branches", "against the first"), rows))
    if _with_terms(report):
        body += section("Where the weights lie", picture(weights_picture(report), "weights by position"))
    names = ("branch", "executed", "misses", "predictor", "model", "terms", "verdict")
    body += section("Branches that were tried", table(names, tried, left=(0, 6)))
    return write_document(path, title, body, lead=lead, command=command)
