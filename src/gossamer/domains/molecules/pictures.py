"""A picture of a prediction: what it corrects, what it leaves, and the orbital energies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gossamer.errors import MissingExtra
from gossamer.runs.files import atomic

from .data import Labelled
from .network import SPHNet
from .orbitals import solve


def draw(model: SPHNet, data: Labelled, path: Path) -> Path:
    """Write a .png for the first molecule: correction wanted, predicted, left over; and errors of occupied energies.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    sample = data.samples[0]
    wanted, found = sample.fock - sample.guess, model.predict([sample.molecule])[0]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
    limit = float(np.abs(wanted).max())
    left = found - wanted
    factor = _magnification(float(np.abs(left).max()), limit)
    titles = ("true correction", "predicted", "difference" + (f", {factor} times" if factor > 1 else ""))
    for axis, matrix, title in zip(axes, (wanted, found, factor * left), titles, strict=False):
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(image, ax=list(axes[:3]), shrink=0.85, label="hartree")
    _energies(axes[3], model, data)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path


def _magnification(largest: float, limit: float) -> int:
    """The power of ten, up to 1000, that brings the largest error nearest to the ends of the colours, within them."""
    return next((factor for factor in (1000, 100, 10) if factor * largest <= limit), 1)


def _energies(axis: Any, model: SPHNet, data: Labelled) -> None:
    samples = data.samples[:50]
    occupied = samples[0].molecule.occupied()
    same = [s for s in samples if s.molecule.occupied() == occupied]
    errors: dict[str, list[np.ndarray]] = {"minao": [], "network": []}
    for sample, added in zip(same, model.predict([s.molecule for s in same]), strict=True):
        for name, fock in (("minao", sample.guess), ("network", sample.guess + added)):
            errors[name].append(np.abs(solve(fock, sample.overlap)[0] - sample.energies)[:occupied])
    for name, marker in (("minao", "s"), ("network", "o")):
        axis.plot(range(1, occupied + 1), 1000 * np.mean(errors[name], 0), marker=marker, label=name)
    axis.set(title="occupied energies", xlabel="orbital", ylabel="mean error, millihartree", yscale="log")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
