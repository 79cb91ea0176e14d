"""A page that shows what a cut left of a graph, beside random edges."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import MissingExtra
from ...runs.document import picture, section, table, write_document

DRAWN = 300  # nodes of the largest graph that is drawn; of larger ones only degrees are shown


def structure_page(
    path: str | Path, title: str, graphs: Mapping[str, Tensor], figures: Mapping[str, Mapping[str, float]], nodes: int
) -> Path:
    """Write a page: the graphs drawn alike (small ones), their degrees, and their figures in a table.

    Args:
        graphs: caption -> (2, E); the first is the whole graph. figures: caption -> figure -> value.
    Raises:
        MissingExtra: matplotlib is not installed.
    """
    names = next(iter(figures.values()))
    rows = [[name, *(f"{row[name]:.4g}" for row in figures.values())] for name in names]
    body = section("", picture(draw(graphs, nodes), "the graph before and after"))
    body += section("", table(("", *figures), rows))
    lead = "Random edges of the same number stand beside, since they are often as good."
    return write_document(path, f"Edges of {title}", body, lead=lead)


def draw(graphs: Mapping[str, Tensor], nodes: int, y: Tensor | None = None) -> bytes:
    """A PNG with one column for each graph: drawn if there are at most `DRAWN` nodes, and their degrees below.

    Args:
        y: (nodes,) classes that colour the nodes.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    small = nodes <= DRAWN
    figure = Figure(figsize=(4.2 * len(graphs), 6.2 if small else 2.8), layout="constrained")
    ratios = (2.2, 1.0) if small else (1.0,)
    axes = figure.subplots(len(ratios), len(graphs), squeeze=False, sharey="row", height_ratios=ratios)
    degrees = [torch.bincount(_once(edges, nodes).flatten(), minlength=nodes).numpy() for edges in graphs.values()]
    places = _layout(next(iter(graphs.values())), nodes) if small else None
    top = max(int(degree.max()) for degree in degrees)
    for column, (name, edges) in enumerate(graphs.items()):
        once = _once(edges, nodes)
        if places is not None:
            _network(axes[0, column], once, places, degrees[column], y)
        axes[0, column].set_title(f"{name}: {once.shape[1]} edges", fontsize=12)
        panel = axes[-1, column]
        bins = np.arange(top + 2) - 0.5 if top < 40 else np.geomspace(1, top + 1, 25) - 0.5
        panel.hist(degrees[column], bins=np.unique(bins) if top < 40 else [-0.5, *bins], color="#4c78a8")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_xlim(-1, top + 1)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_xlabel("degree")
        panel.spines[["top", "right"]].set_visible(False)
        if not column:
            panel.set_ylabel("nodes")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _network(axes: Any, once: Tensor, places: Any, degree: Any, y: Tensor | None) -> None:
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(places[once.T.numpy()], colors="#888", linewidths=0.8, zorder=1))
    colours = np.array(["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2"])
    shade = colours[(y.numpy() if y is not None else np.zeros(len(degree), int)) % len(colours)]
    axes.scatter(*places.T, s=18 + 8 * degree, c=shade, edgecolors="white", linewidths=0.6, zorder=2)
    axes.set_axis_off()
    axes.margins(0.06)


def _once(edge_index: Tensor, nodes: int) -> Tensor:
    """Each undirected edge once, self loops left out."""
    low, high = edge_index.min(0).values, edge_index.max(0).values
    keys = torch.unique((low * nodes + high)[low != high])
    return torch.stack([keys // nodes, keys % nodes])


def _layout(edge_index: Tensor, nodes: int) -> Any:
    """(nodes, 2) places at which neighbours are near."""
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(_once(edge_index, nodes).T.tolist())
    places = networkx.spring_layout(graph, seed=1, iterations=80)
    return np.array([places[node] for node in range(nodes)])
