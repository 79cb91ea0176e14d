"""Pictures of what was learned: the dictionary as tiles, prior and likelihood beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtra, ShapeError
from ...runs.files import atomic
from .estimator import SparseCoder

Array = NDArray[np.float64]
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def tiles(components: Array, shape: tuple[int, ...], columns: int | None = None, gap: int = 1) -> Array:
    """Components as one picture of tiles, each scaled by its own largest magnitude: 0.5 is zero.

    Args:
        components: (H, D). shape: of one, (h, w) or (h, w, 3), of D values.
        columns: tiles in a row; by default as square as can be. gap: white pixels between tiles.
    Returns:
        (rows * (h + gap) - gap, columns * (w + gap) - gap[, 3]) in [0, 1].
    Raises:
        ShapeError: the shape does not hold D values.
    """
    if len(shape) not in (2, 3) or int(np.prod(shape)) != components.shape[1]:
        raise ShapeError(f"components of {components.shape[1]} values do not fill tiles of {shape}")
    count = len(components)
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    height, width = shape[:2]
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, *shape[2:]))
    for index, component in enumerate(components):
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        scaled = component / max(float(np.abs(component).max()), 1e-300)
        canvas[top : top + height, left : left + width] = 0.5 + 0.5 * scaled.reshape(shape)
    return canvas


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_dictionary(
    coder: SparseCoder, path: str | Path, shape: tuple[int, ...] | None = None, title: str = ""
) -> Path:
    """Write a PNG: the components, the most probable first; the likelihood over the steps; the prior of the units.

    Args:
        shape: of a component; by default square and grey.
    Raises:
        ShapeError: components that are no squares, without a shape. MissingExtra: matplotlib is not installed.
    """
    side = round(np.sqrt(coder.components_.shape[1]))
    shape = (side, side) if shape is None else shape
    prior = np.broadcast_to(coder.prior_, (len(coder.components_),))
    strength = prior * np.linalg.norm(coder.components_, axis=1) ** 2 * _slab_power(coder)
    order = np.argsort(-strength, kind="stable")
    picture = tiles(coder.components_[order], shape)
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure = _figure(9, 4.8)
        left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
        axes = left.subplots()
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title or f"{len(order)} components, strongest first")
        _right(right, coder, strength[order])
        with atomic(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
    return Path(path)


def _slab_power(coder: SparseCoder) -> Array:
    """Mean square of an active latent, (H,)."""
    params = coder.params_
    if "psi" not in params:
        return np.ones(len(coder.components_))
    power: Array = (params["mu"].square() + params["psi"]).double().cpu().numpy()
    return power


def _right(figure: Any, coder: SparseCoder, strength: Array) -> None:
    curve, usage = figure.subplots(2, 1)
    steps = np.arange(1, coder.n_iter_ + 1)
    curve.plot(steps, coder.history_["log_likelihood"], color="#1f5fa8")
    curve.set_title("log-likelihood per point (nats)")
    curve.set_xlabel("EM step")
    warm = np.asarray(coder.history_["T"]) > 1
    if warm.any():
        curve.axvspan(0.5, steps[warm][-1], color="#f2c14e", alpha=0.25, lw=0)
        curve.text(0.02, 0.93, "annealed", transform=curve.transAxes, va="top", fontsize=8, color="#8a6a10")
    usage.bar(np.arange(len(strength)), strength / strength.sum(), color="#5b8c5a", width=0.9)
    usage.set_title("share of the signal's power")
    usage.set_xlabel("component")
    for axes in (curve, usage):
        axes.xaxis.get_major_locator().set_params(integer=True)


def plot_pictures(pictures: Mapping[str, Array], path: str | Path) -> Path:
    """Write a PNG of pictures (h, w[, 3]) in [0, 1] side by side, under their names; NaN is drawn red."""
    height, width = next(iter(pictures.values())).shape[:2]
    figure = _figure(3.6 * len(pictures), 3.6 * height / width + 0.3)
    panels = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (name, picture) in zip(panels, pictures.items(), strict=True):
        shown = np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture
        holes = np.isnan(shown).any(2, keepdims=True)
        axes.imshow(np.where(holes, np.array([0.85, 0.2, 0.2]), shown.clip(0, 1)), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, fontsize=10)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return Path(path)
