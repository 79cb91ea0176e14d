"""A picture of who is matched with whom: two clouds of points and the plans between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gossamer.errors import MissingExtra, ShapeError
from gossamer.runs.files import atomic

_FIRST, _SECOND, _LINE = "#c2553a", "#3b6fb6", "#4a5361"


def plane(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of two tables as points (n, 2): themselves where there are two columns, else the first principal ones."""
    both = torch.cat([first, second]).double()
    if both.shape[1] == 1:
        both = torch.cat([both, torch.zeros_like(both)], 1)
        both[len(first) :, 1] = 1.0  # two parallel lines
    elif both.shape[1] > 2:
        both = both - both.mean(0)
        both = both @ torch.linalg.svd(both, full_matrices=False).Vh[:2].T
    return both[: len(first)], both[len(first) :]


def plot_matching(first: Tensor, second: Tensor, plans: Mapping[str, Tensor], path: str | Path) -> Path:
    """Draw the two clouds once for each plan, with a line for every entry, the stronger the larger its share.

    Args:
        first: (m, c). second: (n, c). plans: title -> (m, n), non-negative; shown as shares of each column.
        path: of the picture, ending in .png.
    Raises:
        ShapeError: a plan of another shape. MissingExtra: matplotlib.
    """
    try:
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    x, y = plane(first, second)
    figure = Figure(figsize=(3.3 * len(plans), 3.6), layout="constrained")
    for axes, (title, plan) in zip(figure.subplots(1, len(plans), squeeze=False)[0], plans.items(), strict=True):
        if plan.shape != (len(x), len(y)):
            raise ShapeError(
                f"plan {title!r} has shape {tuple(plan.shape)}, the tables have {len(x)} and {len(y)} rows"
            )
        share = (plan / plan.sum(0, keepdim=True).clamp(min=1e-300)).clamp(max=1)
        i, j = (share > 1e-4).nonzero(as_tuple=True)
        ends = torch.stack([x[i], y[j]], 1).tolist()
        axes.add_collection(LineCollection(ends, colors=_LINE, linewidths=1.3, alpha=share[i, j].tolist()))
        axes.scatter(*x.T.tolist(), s=22, color=_FIRST, zorder=2)
        axes.scatter(*y.T.tolist(), s=22, color=_SECOND, marker="s", zorder=2)
        most = int((share > 1e-4).sum(0).max())
        axes.set_title(f"{title}\n{len(i)} pairs, at most {most} for each square", fontsize=10)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    path = Path(path)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path
