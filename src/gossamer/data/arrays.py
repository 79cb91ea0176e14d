"""Arrays in .npz and .safetensors files, read without pickle and never beyond their declared size."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gossamer.data.dataset import Batches, Dataset, Subset, Tensors, hold_out
from gossamer.data.locate import find
from gossamer.errors import ConfigError, DataError

MAX_BYTES = 1 << 34  # 16 GiB


def read_npz(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The arrays of an .npz file as tensors; never unpickles.

    Args:
        path: the file.
        max_bytes: most bytes that all arrays together may declare.
    Raises:
        DataError: no .npz file, damaged, holds pickled objects or types torch lacks, or declares too much.
            The declared shapes are checked before any array is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, Path(path), max_bytes)
        with np.load(path, allow_pickle=False) as loaded:
            return {name: _tensor(loaded[name], name, Path(path)) for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}") from error


def _check_members(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> None:
    total = sum(member.file_size for member in archive.infolist())
    if total > max_bytes:
        raise DataError(f"{path} declares {total} bytes of arrays; at most {max_bytes} are read")
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            raise DataError(f"{path} holds {member.filename!r}, which is no array")
        with archive.open(member) as stream:
            shape, dtype = _header(stream)
            if dtype.hasobject:
                raise DataError(f"array {member.filename!r} of {path} holds pickled objects; it is not read")
            if stream.tell() + prod(shape) * dtype.itemsize != member.file_size:
                raise DataError(f"array {member.filename!r} of {path} does not fill its declared shape {shape}")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _tensor(array: np.ndarray, name: str, path: Path) -> Tensor:
    try:
        return torch.from_numpy(array.copy(order="C"))
    except TypeError as error:
        raise DataError(f"array {name!r} of {path} has type {array.dtype}, which torch lacks") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an .npz or .safetensors file, by its suffix.

    Raises:
        DataError: another suffix, missing or damaged.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix != ".safetensors":
        raise DataError(f"{path}: arrays are read from .npz and .safetensors files, not {path.suffix!r}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def arrays(*, path: str | Path, batch_size: int = 128, seed: int = 0, val: float = 0.0, test: float = 0.2) -> Dataset:
    """A data set from named arrays: `x_train, y_train, x_test, y_test`, or `x, y` with a fixed random split.

    Integer targets make a classification (classes 0 ... max), floats a regression. uint8 inputs are scaled to
    [0, 1] and get a channel dimension where they are (N, H, W).

    Args:
        path: .npz or .safetensors file.
        batch_size: samples in a batch.
        seed: of the order.
        val: fraction of the training samples held out for selection.
        test: fraction that is the test set, where the file does not name one.
    Raises:
        DataError: missing or corrupt file, names that are not there, negative labels, or NaN and infinities.
        ConfigError: a fraction that leaves a part empty.
    """
    train, held_test = _train_and_test(read_tensors(path), Path(path), test)
    targets = train.tensors[1]
    if targets.dtype == torch.long:
        classes = int(torch.cat([targets, held_test.tensors[1]]).max()) + 1
    else:
        classes = prod(targets.shape[1:])
    kept, held = hold_out(len(train), val)
    batches = partial(Batches, batch_size=batch_size)
    return Dataset(
        train=batches(Subset(train, kept), seed=seed, shuffle=True),
        val=batches(Subset(train, held)) if len(held) else None,
        test=batches(held_test),
        classes=classes,
        shape=tuple(train.tensors[0].shape[1:]),
        kind="classification" if targets.dtype == torch.long else "regression",
    )


def _train_and_test(named: Mapping[str, Tensor], path: Path, test: float) -> tuple[Tensors, Tensors]:
    if {"x_train", "y_train", "x_test", "y_test"} <= named.keys():
        parts = [_inputs(named["x_train"], path), _targets(named["y_train"], path)]
        return Tensors(*parts), Tensors(_inputs(named["x_test"], path), _targets(named["y_test"], path))
    if not {"x", "y"} <= named.keys():
        raise DataError(f"{path} names {sorted(named)}; need x, y or x_train, y_train, x_test, y_test")
    whole = Tensors(_inputs(named["x"], path), _targets(named["y"], path))
    kept, held = hold_out(len(whole), test)
    if not len(held):
        raise ConfigError(f"test={test} leaves {path} without test samples")
    return Tensors(*whole[kept]), Tensors(*whole[held])


def _inputs(x: Tensor, path: Path) -> Tensor:
    if x.dtype == torch.uint8:
        scaled = x.float() / 255
        return scaled.unsqueeze(1) if x.dim() == 3 else scaled
    return _finite(x.float(), path)


def _targets(y: Tensor, path: Path) -> Tensor:
    if y.is_floating_point():
        return _finite(y.float(), path)
    if len(y) and int(y.min()) < 0:
        raise DataError(f"{path} holds the negative label {int(y.min())}")
    return y.long()


def _finite(values: Tensor, path: Path) -> Tensor:
    if not values.isfinite().all():
        raise DataError(f"{path} holds NaN or infinite values")
    return values


def fashion_mnist_900(*, batch_size: int = 128, seed: int = 0, val: float = 0.0) -> Dataset:
    """900 Fashion-MNIST images (1, 28, 28), a third to test; for small checks.

    Files: "fashion-mnist-sprite" of `find`. Arguments and errors as in `arrays`.
    """
    path = find("fashion-mnist-sprite", "fashion-mnist-900.npz") / "fashion-mnist-900.npz"
    return arrays(path=path, batch_size=batch_size, seed=seed, val=val, test=1 / 3)
