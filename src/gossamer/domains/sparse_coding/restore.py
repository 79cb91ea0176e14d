"""Pictures without noise or holes: a model of their own patches, and the mean of all patches' posterior means."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DataError, ShapeError
from .checks import SparseCodingWarning, check_counts
from .estimator import SparseCoder
from .models import SpikeSlabSparseCoding
from .patches import assemble, extract

Array = NDArray[np.float64]
LEAST_SEEN = 0.1  # share of a patch that must be there for it to say something about the rest


@dataclass(frozen=True)
class Restored:
    """A restored picture, the model that was used, and the noise that it found, in units of the picture's values."""

    picture: Array
    coder: SparseCoder
    sigma: float


def default_coder(missing: bool = False, **options: Any) -> SparseCoder:
    """Spike and slab with 64 components, at most 3 active among 6 candidates, 30 steps.

    The data cut of the models' default annealing is left out: every patch counts, also the crowded ones.
    """
    components = options.pop("n_components", 64)
    settings: dict[str, Any] = {
        "n_candidates": min(6, components),
        "max_active": min(3, components),
        "steps": 30,
        "anneal": {"T": ((0, 2.0), (0.6, 1.0))},
        "random_state": 0,
    }
    return SpikeSlabSparseCoding(components, missing=missing, **(settings | options))


def _centred(patches: Array) -> tuple[Array, Array]:
    """Patches without their mean (over what is there), and the means (n, 1); those of empty patches are 0."""
    seen = ~np.isnan(patches)
    mean = np.where(seen, patches, 0).sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1)
    return patches - mean, mean


def _learn(coder: SparseCoder, patches: Array, limit: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(patches))[:limit]
    with warnings.catch_warnings():
        # patches of pictures often use all components that they may; `saturated_` says how many did
        warnings.simplefilter("ignore", SparseCodingWarning)
        coder.fit(patches[np.sort(chosen)])


def _check_picture(picture: Any) -> Array:
    picture = np.asarray(picture, dtype=np.float64)
    if picture.ndim not in (2, 3):
        raise ShapeError(f"a picture is (height, width) or (height, width, channels), got {picture.shape}")
    return picture


def denoise(
    picture: Any,
    coder: SparseCoder | None = None,
    *,
    side: int = 8,
    stride: int = 2,
    patches: int = 10_000,
    seed: int = 0,
) -> Restored:
    """The picture without its noise, whose strength is learned.

    Args:
        picture: (h, w) or (h, w, channels), any scale, finite.
        coder: an estimator; one that is fitted to patches of this side is used as it is, another one, by default
            `default_coder()`, is fitted to patches of this picture.
        side: of the patches in pixels. stride: pixels between them; 1 is the smoothest and slowest.
        patches: number of them to learn from. seed: of their choice.
    Raises:
        DataError: NaN (use `inpaint`) or infinity in the picture, or it is flat.
        ConfigError: side or stride out of range. ShapeError: not a picture.
    """
    picture = _check_picture(picture)
    check_counts(patches=patches)
    if not np.isfinite(picture).all():
        raise DataError("the picture holds NaN or infinity; inpaint() fills NaN in")
    coder = default_coder() if coder is None else coder
    return _restore(picture, coder, side, stride, patches, seed)


def inpaint(
    picture: Any,
    mask: Any = None,
    coder: SparseCoder | None = None,
    *,
    side: int = 8,
    stride: int = 2,
    patches: int = 4_000,
    seed: int = 0,
) -> Restored:
    """The picture with its holes filled in; pixels that were there are kept as they are.

    Args:
        picture: (h, w) or (h, w, channels).
        mask: (h, w) bool, True where pixels are missing; None takes NaN as missing.
        coder, side, stride, patches, seed: as for `denoise`; an estimator needs missing=True. It learns from patches
            with holes too.
    Raises:
        DataError: nothing or everything is missing, or a hole is larger than a patch.
        ConfigError: an estimator that takes no missing values.
    """
    picture = _check_picture(picture).copy()
    check_counts(patches=patches)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != picture.shape[:2]:
            raise ShapeError(f"the mask must be bool of shape {picture.shape[:2]}, got {mask.dtype} {mask.shape}")
        picture[mask] = np.nan
    holes = np.isnan(picture)
    if not holes.any() or holes.all():
        raise DataError("nothing to fill in: no pixel is missing" if not holes.any() else "every pixel is missing")
    if np.isinf(picture).any():
        raise DataError("the picture holds infinity")
    coder = default_coder(missing=True) if coder is None else coder
    if not coder.missing:
        raise ConfigError("inpainting needs an estimator with missing=True")
    found = _restore(picture, coder, side, stride, patches, seed)
    left = int(np.isnan(found.picture).any(-1).sum() if picture.ndim == 3 else np.isnan(found.picture).sum())
    if left:
        raise DataError(f"{left} pixels lie in holes that patches of {side} x {side} do not span: choose a larger side")
    return Restored(np.where(holes, found.picture, picture), found.coder, found.sigma)


def _restore(picture: Array, coder: SparseCoder, side: int, stride: int, limit: int, seed: int) -> Restored:
    scale = float(np.nanstd(picture))
    if scale == 0:
        raise DataError("the picture is flat: all its pixels are equal")
    all_patches = extract(picture / scale, side, stride)
    seen = (~np.isnan(all_patches)).mean(1)
    usable = seen >= LEAST_SEEN
    centred, mean = _centred(all_patches)
    if not hasattr(coder, "params_"):
        _learn(coder, centred[seen >= 0.5] if (seen >= 0.5).any() else centred[usable], limit, seed)
    clean = np.zeros_like(centred)
    clean[usable] = coder.reconstruct(centred[usable])
    whole = assemble(clean + mean, picture.shape, side, stride, weights=usable.astype(float))
    return Restored(scale * whole, coder, scale * float(np.mean(coder.sigma_)))
