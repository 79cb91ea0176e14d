"""A picture of what rearranging channels gains: kept importance of each layer, before and after."""

from __future__ import annotations

import os
from pathlib import Path

from gossamer.errors import MissingExtra
from gossamer.sparsify.rearrange import LayerGain, Rearrangement

_BLOCK, _GAIN, _FREE = "#4a6fa5", "#e08e45", "#9aa0a6"
_MOST = 40  # layers that a picture shows; the ones with the most weight


def picture(found: Rearrangement, path: str | Path, title: str = "") -> Path:
    """Draw one bar a layer: blocks, what the new order adds, and the mark of unstructured pruning above it.

    Args:
        path: .png or .svg file.
    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    rows = _shown(found)
    figure = Figure(figsize=(8.0, 1.6 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    before, gains = [row.before for row in rows], [row.after - row.before for row in rows]
    axes.barh(places, before, color=_BLOCK, height=0.62, label="blocks in the old order")
    axes.barh(places, gains, left=before, color=_GAIN, height=0.62, label="gained by the new order")
    axes.plot([row.free for row in rows], places, "|", color=_FREE, ms=11, mew=2.2, label="unstructured")
    axes.set_yticks(places, [row.layer for row in rows], fontsize=8)
    axes.invert_yaxis()
    lowest = min(before)
    axes.set_xlim(max(0.0, lowest - 0.25 * (max(row.free for row in rows) - lowest) - 0.02), None)
    axes.set_xlabel(f"kept share of sum |w| at {found.sparsity:.0%} zeros (the axis does not start at 0)")
    axes.set_title(title or f"{found.recovered:.0%} of the gap to unstructured pruning closed", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(temporary, dpi=140)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _shown(found: Rearrangement) -> list[LayerGain]:
    """The layers with the most weight, in the network's order."""
    largest = sorted(found.layers, key=lambda row: row.total, reverse=True)[:_MOST]
    return [row for row in found.layers if row in largest]
