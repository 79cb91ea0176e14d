"""IDX files, the format of MNIST and its family; plain or gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from gossamer.data.dataset import Batches, Dataset, Subset, Tensors, hold_out
from gossamer.data.locate import find
from gossamer.data.transforms import Chain, Normalise, RandomCrop
from gossamer.errors import DataError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 8
_DEFLATE_RATIO = 1032  # deflate cannot expand a byte into more than this


def read_idx(path: str | Path) -> Tensor:
    """The array of an IDX file; gzip is recognised by its first bytes.

    Raises:
        DataError: missing, truncated or longer than declared, not IDX, or damaged gzip. The declared size is
            compared with the file's before anything is allocated.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        size = path.stat().st_size * (_DEFLATE_RATIO if packed else 1)
        with gzip.open(path) if packed else path.open("rb") as stream:
            return _parse(cast("IO[bytes]", stream), path, size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read IDX file {path}: {error}") from error


def _parse(stream: IO[bytes], path: Path, available: int) -> Tensor:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= _MAX_DIMENSIONS:
        raise DataError(f"{path} is no IDX file: it starts with {head.hex() or 'nothing'}")
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DataError(f"IDX file {path} is truncated inside its header")
    shape = struct.unpack(f">{head[3]}I", sizes)
    dtype = np.dtype(_TYPES[head[2]])
    wanted = prod(shape) * dtype.itemsize
    if wanted > available:
        raise DataError(f"IDX file {path} declares {wanted} bytes of shape {shape}, more than it can hold")
    content = stream.read(wanted)
    if len(content) != wanted or stream.read(1):
        relation = "fewer" if len(content) < wanted else "more"
        raise DataError(f"IDX file {path} declares shape {shape} ({wanted} bytes) but holds {relation} bytes")
    return torch.from_numpy(np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("=")))


def _pair(folder: Path, part: str) -> Tensors:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 of "train" or "t10k"."""

    def either(stem: str) -> Tensor:
        plain = folder / stem
        return read_idx(plain if plain.exists() else folder / f"{stem}.gz")

    images, labels = either(f"{part}-images-idx3-ubyte"), either(f"{part}-labels-idx1-ubyte")
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(
            f"{folder}: {part} images {tuple(images.shape)} do not fit labels {tuple(labels.shape)}; "
            "need (N, height, width) and (N,)"
        )
    return Tensors(images.unsqueeze(1), labels.long())


def idx(
    *,
    path: str | Path,
    batch_size: int = 128,
    seed: int = 0,
    val: float = 0.0,
    augment: bool = False,
    mean: float = 0.0,
    std: float = 1.0,
) -> Dataset:
    """Any folder with the four IDX files of the MNIST family (`train-*`, `t10k-*`, gzip or plain).

    Args:
        path: the folder.
        batch_size: samples in a batch.
        seed: of the order and the augmentation.
        val: fraction of the training images held out for selection.
        augment: random crop after padding by 2 pixels.
        mean, std: of the pixels in [0, 1], to normalise with.
    Raises:
        DataError: a file is missing or corrupt.
    """
    train, test = _pair(Path(path), "train"), _pair(Path(path), "t10k")
    kept, held = hold_out(len(train), val)
    normalise = Normalise((mean,), (std,))
    return Dataset(
        train=Batches(
            Subset(train, kept),
            batch_size,
            seed=seed,
            shuffle=True,
            transform=Chain(RandomCrop(2), normalise) if augment else normalise,
        ),
        val=Batches(Subset(train, held), batch_size, transform=normalise) if len(held) else None,
        test=Batches(test, batch_size, transform=normalise),
        classes=int(train.tensors[1].max()) + 1,
        shape=tuple(train.tensors[0].shape[1:]),
    )


def _family(name: str) -> Path:
    try:
        return find(name, "train-images-idx3-ubyte.gz")
    except DataError:
        return find(name, "train-images-idx3-ubyte")


def mnist(*, batch_size: int = 128, seed: int = 0, val: float = 0.0, augment: bool = False) -> Dataset:
    """MNIST from the folder "mnist" of `find`; inputs (1, 28, 28), 60,000 + 10,000 samples; see `idx`."""
    return idx(
        path=_family("mnist"),
        batch_size=batch_size,
        seed=seed,
        val=val,
        augment=augment,
        mean=0.1307,
        std=0.3081,
    )


def fashion_mnist(*, batch_size: int = 128, seed: int = 0, val: float = 0.0, augment: bool = False) -> Dataset:
    """Fashion-MNIST from the folder "fashion-mnist" of `find`; inputs (1, 28, 28); see `idx`."""
    return idx(
        path=_family("fashion-mnist"),
        batch_size=batch_size,
        seed=seed,
        val=val,
        augment=augment,
        mean=0.2860,
        std=0.3530,
    )
