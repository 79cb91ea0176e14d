"""The digits that ship inside scikit-learn: 1797 images of 8x8, plain or pasted on a noisy canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.data.dataset import Batches, Dataset, Tensors, generator, hold_out
from gossamer.errors import ConfigError

SIDE = 8
_TEST_DRAWS, _VAL_DRAWS = 11, 12  # random streams of the fixed evaluation draws


def _images() -> tuple[Tensor, Tensor]:
    """All digits in one fixed random order: images (1797, 1, 8, 8) in [0, 1], labels (1797,) int64."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    images, labels = load_digits(return_X_y=True)
    # RandomState's stream is frozen by NumPy, so the split is the same with every version.
    order = np.random.RandomState(0).permutation(len(labels))
    pixels = torch.from_numpy(images[order] / 16).float().reshape(-1, 1, SIDE, SIDE)
    return pixels, torch.from_numpy(labels[order]).long()


def _split(train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = _images()
    if not 1 <= train < len(x):
        raise ConfigError(f"train={train}: the digits have {len(x)} images, choose 1 to {len(x) - 1}")
    return x[:train], y[:train], x[train:], y[train:]


def digits(*, batch_size: int = 128, seed: int = 0, val: float = 0.0, train: int = 1000) -> Dataset:
    """The plain digits: inputs (1, 8, 8) in [0, 1]; the first `train` of a fixed order train, the rest test.

    Args:
        batch_size: samples in a batch.
        seed: of the order of the training batches; the split does not depend on it.
        val: fraction of the training images held out for selection.
        train: number of training images (1000, as in the shifted form); the rest is the test set.
    Raises:
        ConfigError: `train` or `val` leaves a part empty.
    """
    x, y, x_test, y_test = _split(train)
    kept, held = hold_out(train, val)
    return Dataset(
        train=Batches([x[kept], y[kept]], batch_size, seed=seed, shuffle=True),
        val=Batches([x[held], y[held]], batch_size) if len(held) else None,
        test=Batches([x_test, y_test], batch_size),
        classes=10,
        shape=(1, SIDE, SIDE),
    )


@dataclass(frozen=True)
class PasteNoisily:
    """Transform: each image at a random offset of a `canvas` x `canvas` field of zeros, plus N(0, noise^2).

    (B, 1, h, w) -> (B, 1, canvas, canvas); fresh offsets and noise at every call.
    """

    canvas: int
    noise: float

    def __call__(self, images: Tensor, source: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        top = torch.randint(self.canvas - height + 1, (count, 1, 1), generator=source)
        left = torch.randint(self.canvas - width + 1, (count, 1, 1), generator=source)
        field = torch.randn(count, 1, self.canvas, self.canvas, generator=source) * self.noise
        rows = top + torch.arange(height).view(1, -1, 1)
        columns = left + torch.arange(width).view(1, 1, -1)
        field[torch.arange(count).view(-1, 1, 1), 0, rows, columns] += images[:, 0]
        return field


def shifted_digits(
    *,
    batch_size: int = 128,
    seed: int = 0,
    val: float = 0.0,
    canvas: int = 12,
    noise: float = 0.25,
    train: int = 1000,
    test_draws: int = 4782,
) -> Dataset:
    """Digits at random places of a noisy canvas: fresh draws for each training batch, fixed ones to test.

    The defaults give the 12x12 task of GraNet's small reproduction: 1000 training images, 797 test images
    with 6 draws each. Inputs (1, canvas, canvas); draw i of the test set shows test image
    i mod (1797 - train).

    Args:
        batch_size: samples in a batch.
        seed: of order, offsets and noise of the training batches; split and fixed draws do not depend on it.
        val: fraction of the training images held out; each is drawn as often as a test image.
        canvas: side of the canvas in pixels, >= 8.
        noise: standard deviation of the noise (pixels lie in [0, 1]), >= 0.
        train: number of training images.
        test_draws: samples of the fixed test set.
    Raises:
        ConfigError: a canvas below 8, negative noise, no test draw, or an empty part.
    """
    if canvas < SIDE or noise < 0 or test_draws < 1:
        raise ConfigError(f"canvas={canvas}, noise={noise}, test_draws={test_draws}: need >= {SIDE}, >= 0 and >= 1")
    x, y, x_test, y_test = _split(train)
    kept, held = hold_out(train, val)
    paste = PasteNoisily(canvas, noise)

    def fixed(images: Tensor, labels: Tensor, draws: int, stream: int) -> Batches:
        which = torch.arange(draws) % len(images)
        return Batches(Tensors(paste(images[which], generator(stream)), labels[which]), batch_size)

    val_draws = round(len(held) * test_draws / len(x_test))
    return Dataset(
        train=Batches([x[kept], y[kept]], batch_size, seed=seed, shuffle=True, transform=paste),
        val=fixed(x[held], y[held], max(val_draws, len(held)), _VAL_DRAWS) if len(held) else None,
        test=fixed(x_test, y_test, test_draws, _TEST_DRAWS),
        classes=10,
        shape=(1, canvas, canvas),
    )


def noisy_digits(*, batch_size: int = 128, seed: int = 0, val: float = 0.0) -> Dataset:
    """The harder 16x16 form with noise 0.45: 1300 training images, 1500 fixed test draws of the other 497.

    The task of the "sparse and wide against dense" comparison of the Fast Sparse ConvNets reproduction.
    Arguments and errors as in `shifted_digits`.
    """
    return shifted_digits(batch_size=batch_size, seed=seed, val=val, canvas=16, noise=0.45, train=1300, test_draws=1500)
