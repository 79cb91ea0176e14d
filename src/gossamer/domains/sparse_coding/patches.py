"""Pictures cut into overlapping patches and put together again; natural patches for experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DataError, MissingExtra, ShapeError

Array = NDArray[np.float64]
NATURAL = ("camera", "coffee", "chelsea", "astronaut", "rocket", "brick", "grass", "gravel")  # ship in scikit-image


def _check(shape: tuple[int, ...], side: int, stride: int) -> None:
    if len(shape) not in (2, 3):
        raise ShapeError(f"a picture is (height, width) or (height, width, channels), got {shape}")
    if not 2 <= side <= min(shape[:2]):
        raise ConfigError(f"side of the patches must lie in 2..{min(shape[:2])}, got {side}")
    if not 1 <= stride <= side:
        raise ConfigError(f"stride must lie in 1..{side}, so that patches cover the picture, got {stride}")


def _starts(length: int, side: int, stride: int) -> NDArray[np.int64]:
    """Every `stride` pixels, and the last place, so that the border is covered."""
    return np.unique(np.append(np.arange(0, length - side + 1, stride), length - side))


def extract(picture: Array, side: int = 8, stride: int = 1) -> Array:
    """All patches: (h, w) or (h, w, c) -> (n, side * side * c), row by row.

    Raises:
        ShapeError: not a picture. ConfigError: a side or stride that does not fit.
    """
    _check(picture.shape, side, stride)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side), axis=(0, 1))
    rows, columns = (_starts(length, side, stride) for length in picture.shape[:2])
    chosen = windows[rows][:, columns]  # (r, k[, c], side, side)
    if picture.ndim == 3:
        chosen = np.moveaxis(chosen, 2, -1)
    return np.ascontiguousarray(chosen.reshape(len(rows) * len(columns), -1), dtype=np.float64)


def assemble(
    patches: Array, shape: tuple[int, ...], side: int = 8, stride: int = 1, weights: Array | None = None
) -> Array:
    """The picture whose overlapping patches these are: the (weighted) mean of all patches that hold a pixel.

    Args:
        patches: as `extract` orders them. shape: of the picture. weights: (n,), 0 leaves a patch out.
    Returns:
        the picture; NaN where no patch of positive weight lies.
    """
    _check(shape, side, stride)
    rows, columns = (_starts(length, side, stride) for length in shape[:2])
    if len(patches) != len(rows) * len(columns):
        raise ShapeError(f"a picture of {shape} has {len(rows) * len(columns)} patches, got {len(patches)}")
    weights = np.ones(len(patches)) if weights is None else weights
    blocks = patches.reshape(len(rows), len(columns), side, side, *shape[2:])
    share = weights.reshape(len(rows), len(columns))
    total, count = np.zeros(shape), np.zeros(shape[:2])
    extra = (1,) * (len(shape) - 2)
    for i in range(side):
        for j in range(side):
            place = np.ix_(rows + i, columns + j)
            total[place] += blocks[:, :, i, j] * share.reshape(*share.shape, *extra)
            count[place] += share
    with np.errstate(invalid="ignore", divide="ignore"):
        whole: Array = total / count.reshape(*count.shape, *extra)
    return whole


def sample_patches(pictures: Sequence[Array], n: int, side: int = 8, seed: int = 0) -> Array:
    """n random patches of grey pictures, each picture equally often on average: (n, side * side)."""
    for picture in pictures:
        _check(picture.shape, side, 1)
    random = np.random.default_rng(seed)
    which = random.integers(len(pictures), size=n)
    found = np.empty((n, side * side))
    for index, picture in enumerate(pictures):
        here = np.flatnonzero(which == index)
        rows, columns = (random.integers(length - side + 1, size=len(here)) for length in picture.shape)
        windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side))
        found[here] = windows[rows, columns].reshape(len(here), -1)
    return found


def natural_patches(n: int, side: int = 10, seed: int = 0, names: tuple[str, ...] = NATURAL) -> Array:
    """Whitened patches of photographs that ship in scikit-image: (n, side * side), zero mean, unit deviation in all.

    Raises:
        MissingExtra: scikit-image is not installed. DataError: no such picture.
    """
    found = sample_patches([whitened(natural_picture(name)) for name in names], n, side, seed)
    found -= found.mean(1, keepdims=True)
    scaled: Array = found / found.std()
    return scaled


def natural_picture(name: str) -> Array:
    """A photograph of scikit-image as grey values in [0, 1], (h, w)."""
    data = _skimage_data()
    if not hasattr(data, name):
        raise DataError(f"scikit-image has no picture {name!r}; these ship with it: {', '.join(NATURAL)}")
    return grey(np.asarray(getattr(data, name)()) / 255.0)


def _skimage_data() -> Any:
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra("scikit-image", "sparse_coding") from error
    return data


def grey(picture: Array) -> Array:
    """(h, w), (h, w, 3) or (h, w, 4) -> (h, w), by the weights of BT.709 as scikit-image has them."""
    if picture.ndim == 2:
        return picture
    mixed: Array = picture[..., :3] @ np.array([0.2125, 0.7154, 0.0721])
    return mixed


def whitened(picture: Array, cutoff: float = 0.4) -> Array:
    """A grey picture whose spectrum is flat up to `cutoff` cycles per pixel and falls off above: unit deviation.

    Source: Olshausen and Field 1996, filter f exp(-(f / f0)^4).
    """
    fy, fx = (np.fft.fftfreq(length) for length in picture.shape)
    f = np.hypot(fy[:, None], fx)
    filtered = np.fft.ifft2(np.fft.fft2(picture - picture.mean()) * f * np.exp(-((f / cutoff) ** 4))).real
    result: Array = filtered / filtered.std()
    return result
