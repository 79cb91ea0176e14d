"""Pictures of sampled objects: mass on a grid, mass and front in the plane of two objectives, fronts of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.maths.pareto import front
from gossamer.report.figures import _FAINT, _INK, _canvas, _inline, colour

Array = NDArray[np.float64]


def mass_chart(name: str, grids: Mapping[str, Array]) -> str:
    """Square grids side by side; the darker a cell, the nearer its value is to the largest of its grid.

    Args:
        grids: title -> (side, side), first axis to the right, second upwards.
    """
    from matplotlib.patches import Rectangle

    with _canvas(name, max(4.6, 1.9 * len(grids)), 2.3, len(grids)) as (_, panels, out):
        for axes, (title, grid) in zip(panels, grids.items(), strict=True):
            side, top = len(grid), float(grid.max()) or 1.0
            for (x, y), value in np.ndenumerate(grid):
                shade = float(value) / top
                if shade >= 0.004:
                    axes.add_patch(Rectangle((x, y), 1, 1, color=colour(1), alpha=shade, linewidth=0))
            axes.set(xlim=(0, side), ylim=(0, side), xticks=[], yticks=[], aspect="equal")
            axes.set_title(title)
            for spine in axes.spines.values():
                spine.set_visible(True)
    return _inline(out, name, "; ".join(grids))


def objectives_chart(name: str, scores: Array, mass: Array, best: Array, labels: tuple[str, str]) -> str:
    """All objects in the plane of two objectives: dots; bubbles as large as their mass; rings round the true front."""
    with _canvas(name, 5.4, 3.8) as (_, (axes,), out):
        axes.plot(scores[:, 0], scores[:, 1], ".", color=_FAINT, markersize=3)
        shown = mass > 1e-4
        sizes = 900 * mass[shown] / max(float(mass.max()), 1e-12) * 0.25
        axes.scatter(scores[shown, 0], scores[shown, 1], s=sizes, color=colour(1), alpha=0.6, linewidth=0, label="mass")
        axes.plot(scores[best, 0], scores[best, 1], "o", color=_INK, markersize=5, markerfacecolor="none",
                  markeredgewidth=0.7, label="true front")  # fmt: skip
        axes.set_xlabel(labels[0])
        axes.set_title(labels[1])
        axes.tick_params(length=0)
        axes.legend(fontsize=9)
    return _inline(out, name, f"{labels[1]} over {labels[0]}")


def fronts_chart(
    name: str, arms: Mapping[str, Sequence[tuple[float, float]]], maximise: tuple[bool, bool], labels: tuple[str, str]
) -> str:
    """Every evaluation of several searches as a dot, and the front of each as a staircase."""
    with _canvas(name, 5.4, 3.6) as (_, (axes,), out):
        for index, (label, points) in enumerate(arms.items()):
            x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
            axes.plot(x, y, ".", color=colour(index), markersize=4, alpha=0.45)
            kept = sorted(points[i] for i in front(points, maximise))
            axes.step([p[0] for p in kept], [p[1] for p in kept], where="post", color=colour(index), linewidth=2,
                      label=label)  # fmt: skip
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.set_xlabel(labels[0])
        axes.set_title(labels[1])
        axes.legend(fontsize=9)
    return _inline(out, name, f"{labels[1]} over {labels[0]}: fronts of {', '.join(arms)}")
