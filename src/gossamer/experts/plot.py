"""A picture of what the expert layers of a model do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossamer.errors import MissingExtra
from gossamer.runs.files import atomic


def plot_report(report: dict[str, Any], path: str | Path) -> Path:
    """Draw the load of every expert and the likeness of the experts, by layer, as PNG.

    Args:
        report: of `moe_report`. path: of the picture, ending in .png.
    Raises:
        MissingExtra: matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    layers = report["layers"]
    names, places = list(layers), range(len(layers))
    figure = Figure(figsize=(8, 1.6 + 0.42 * len(names)), layout="constrained")
    load, alike = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    widest = max(len(layer["load"]) for layer in layers.values())
    table = [[*layer["load"], *[float("nan")] * (widest - len(layer["load"]))] for layer in layers.values()]
    shown = load.imshow(table, aspect="auto", cmap="Blues", vmin=0)
    for y, row in enumerate(table):
        for x, share in enumerate(row):
            dark = share > 0.6 * shown.get_clim()[1]
            load.text(x, y, f"{100 * share:.0f} %", ha="center", va="center", color="white" if dark else "#222222")
    load.set(title="share of the tokens", xlabel="expert", xticks=range(widest), yticks=places)
    load.set_yticklabels(names, fontsize=8)
    alike.barh(places, [layer["similarity"] for layer in layers.values()], color="#8c9db5")
    for y, layer in enumerate(layers.values()):
        alike.text(0.03, y, f"{layer['similarity']:.4f}", va="center", color="white")
    alike.set(title="likeness of the experts", xlabel="mean cosine of their weights", xlim=(0, 1))
    for axes in (load, alike):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    path = Path(path)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path
