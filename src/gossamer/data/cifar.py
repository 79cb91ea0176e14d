"""CIFAR-10 and CIFAR-100 from their binary files, and CIFAR-10 from zip files of JPEG images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from gossamer.data.dataset import Batches, Dataset, Subset, Tensors, hold_out
from gossamer.data.images import image_files
from gossamer.data.locate import find
from gossamer.data.transforms import Chain, Normalise, RandomCrop, RandomFlip
from gossamer.errors import DataError

_PIXELS = 3 * 32 * 32
_MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
_STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}


def read_cifar(path: str | Path, classes: int) -> Tensors:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one binary file.

    Args:
        path: a `.bin` file; each record is one label byte (CIFAR-100: coarse, then fine) and 3072 pixels.
        classes: 10 or 100.
    Raises:
        DataError: missing, not a whole number of records, or a label that is too large.
    """
    path = Path(path)
    labels = 2 if classes == 100 else 1
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read CIFAR file {path}: {error}") from error
    if not content or len(content) % (labels + _PIXELS):
        raise DataError(
            f"CIFAR-{classes} file {path} has {len(content)} bytes, no multiple of {labels + _PIXELS}; "
            "it is truncated or of another kind"
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, labels + _PIXELS)
    fine = records[:, labels - 1].long()
    if int(fine.max()) >= classes:
        raise DataError(f"CIFAR-{classes} file {path} holds label {int(fine.max())}; it is of another kind")
    return Tensors(records[:, labels:].reshape(-1, 3, 32, 32), fine)


def _dataset(
    train: Tensors, test: Tensors, classes: int, batch_size: int, seed: int, val: float, augment: bool
) -> Dataset:
    """Padded random crop and flip in training, normalisation everywhere."""
    kept, held = hold_out(len(train), val)
    normalise = Normalise(_MEAN[classes], _STD[classes])
    augmented = Chain(RandomCrop(4), RandomFlip(), normalise) if augment else normalise
    batches = partial(Batches, batch_size=batch_size)
    return Dataset(
        train=batches(Subset(train, kept), seed=seed, shuffle=True, transform=augmented),
        val=batches(Subset(train, held), transform=normalise) if len(held) else None,
        test=batches(test, transform=normalise),
        classes=classes,
        shape=(3, 32, 32),
    )


def cifar10(
    *,
    path: str | Path | None = None,
    batch_size: int = 128,
    seed: int = 0,
    val: float = 0.0,
    augment: bool = True,
) -> Dataset:
    """CIFAR-10's binary version, data_batch_1.bin ... 5.bin and test_batch.bin; inputs (3, 32, 32).

    Args:
        path: folder of the files; default: "cifar-10-batches-bin" of `find`.
        batch_size: samples in a batch.
        seed: of order and augmentation.
        val: fraction of the training images held out for selection.
        augment: random crop after padding by 4 pixels, and flip.
    Raises:
        DataError: a file is missing or corrupt.
    """
    folder = Path(path) if path else find("cifar-10-batches-bin")
    parts = [read_cifar(folder / f"data_batch_{index}.bin", 10) for index in range(1, 6)]
    train = Tensors(*(torch.cat(column) for column in zip(*(part.tensors for part in parts), strict=True)))
    return _dataset(train, read_cifar(folder / "test_batch.bin", 10), 10, batch_size, seed, val, augment)


def cifar100(
    *,
    path: str | Path | None = None,
    batch_size: int = 128,
    seed: int = 0,
    val: float = 0.0,
    augment: bool = True,
) -> Dataset:
    """CIFAR-100's binary version (train.bin, test.bin), fine labels; default folder "cifar-100-binary".

    Arguments and errors as in `cifar10`.
    """
    folder = Path(path) if path else find("cifar-100-binary")
    train, test = read_cifar(folder / "train.bin", 100), read_cifar(folder / "test.bin", 100)
    return _dataset(train, test, 100, batch_size, seed, val, augment)


def cifar10_jpeg(
    *,
    batch_size: int = 128,
    seed: int = 0,
    val: float = 0.0,
    augment: bool = True,
    per_class: int | None = None,
) -> Dataset:
    """A JPEG copy of CIFAR-10, train-40k.zip and test-10k.zip in "cifar10-jpeg" of `find`, read into memory.

    The compression is lossy: compare methods with each other on it, not with published CIFAR-10 figures.

    Args:
        batch_size, seed, val, augment: as in `cifar10`.
        per_class: take only the first so many training images of each class.
    Raises:
        DataError: a file is missing or corrupt.
        MissingExtra: Pillow is not installed.
    """
    folder = find("cifar10-jpeg", "train-40k.zip", "test-10k.zip")
    train = image_files(folder / "train-40k.zip", 32)
    train = train if per_class is None else train.first(per_class)
    test = image_files(folder / "test-10k.zip", 32)
    return _dataset(train.in_memory(), test.in_memory(), 10, batch_size, seed, val, augment)
