"""Images in class folders, on disk or inside a zip file, decoded when they are needed."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.data.dataset import Batches, Dataset, Subset, Tensors, hold_out
from gossamer.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterCrop,
    Chain,
    Normalise,
    RandomFlip,
    RandomResizedCrop,
    resize,
)
from gossamer.errors import DataError, MissingExtra

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_MAX_BYTES = 1 << 26  # of one image file, 64 MiB


@dataclass(frozen=True)
class ImageFiles:
    """A source of (images (B, 3, size, size) uint8, labels (B,) int64), decoded on access.

    An image is cut to its middle square and resized; `names` are paths below `path`, a folder or a zip file.

    Raises (on access):
        DataError: an image is missing, damaged, larger than 64 MiB, or no JPEG, PNG, BMP or WebP.
        MissingExtra: Pillow is not installed.
    """

    path: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        wanted = indices.tolist()
        contents = _contents(self.path, [self.names[index] for index in wanted])
        decoded = [_decode(data, f"{self.path}:{name}", self.size) for name, data in contents]
        return torch.stack(decoded), torch.tensor([self.labels[index] for index in wanted])

    def in_memory(self) -> Tensors:
        """All images decoded at once."""
        return Tensors(*self[torch.arange(len(self))])

    def first(self, per_class: int) -> ImageFiles:
        """The first `per_class` images of every class."""
        seen: Counter[int] = Counter()
        kept = []
        for index, label in enumerate(self.labels):
            seen[label] += 1
            if seen[label] <= per_class:
                kept.append(index)
        names = tuple(self.names[index] for index in kept)
        return replace(self, names=names, labels=tuple(self.labels[index] for index in kept))


def image_files(path: str | Path, size: int, part: str | None = None) -> ImageFiles:
    """The images below a folder or in a zip file; the class is the name of the innermost folder.

    Args:
        path: folder or zip file with `[.../][part/]class/image.jpg`.
        size: side to which images are resized when they are read.
        part: take only images with this folder name above the class, such as "train".
    Raises:
        DataError: nothing there, not a zip file, or no image in class folders.
    """
    path = Path(path)
    found = [PurePosixPath(name) for name in sorted(_listing(path))]
    chosen = [
        name
        for name in found
        if name.suffix.lower() in SUFFIXES and len(name.parts) >= 2 and (part is None or part in name.parts[:-2])
    ]
    if not chosen:
        where = f" under {part!r}" if part else ""
        raise DataError(f"{path} holds no images in class folders{where} ({', '.join(SUFFIXES)})")
    classes = tuple(sorted({name.parts[-2] for name in chosen}))
    number = {name: index for index, name in enumerate(classes)}
    labels = tuple(number[name.parts[-2]] for name in chosen)
    return ImageFiles(path, tuple(map(str, chosen)), labels, classes, size)


def _listing(path: Path) -> list[str]:
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read image folder or zip file {path}: {error}") from error


def _contents(path: Path, names: list[str]) -> Iterable[tuple[str, bytes]]:
    """(name, bytes) of each named file; the size is checked before reading."""
    try:
        if path.is_dir():
            for name in names:
                _check_size(path, name, (path / name).stat().st_size)
                yield name, (path / name).read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for name in names:
                _check_size(path, name, archive.getinfo(name).file_size)
                yield name, archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"cannot read an image of {path}: {error}") from error


def _check_size(path: Path, name: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise DataError(f"{path}:{name} has {size} bytes; an image may have at most {_MAX_BYTES}")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "report") from error
    return Image


def _decode(data: bytes, name: str, size: int) -> Tensor:
    """(3, size, size) uint8."""
    Image = _pillow()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot decode image {name}: {error}") from error
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    side = min(tensor.shape[1:])
    if side == size == max(tensor.shape[1:]):
        return tensor.contiguous()
    square = CenterCrop(side)(tensor[None], torch.Generator())
    return resize(square, size)[0]


def images(
    *,
    path: str | Path,
    size: int = 224,
    batch_size: int = 64,
    seed: int = 0,
    val: float = 0.0,
    test: float = 0.2,
    augment: bool = True,
    per_class: int | None = None,
) -> Dataset:
    """Images in class folders (ImageNet's layout), normalised with ImageNet's mean and standard deviation.

    If `path` has the parts "train" and "test" (or, ImageNet's habit, "train" and "val"), the second one is
    the test set; else a fixed random fraction `test` is held out.

    Args:
        path: folder or zip file.
        size: side of the inputs in pixels. Images are read at size * 8 / 7 (256 for 224), then cropped.
        batch_size: samples in a batch.
        seed: of order and augmentation.
        val: fraction of the training images held out for selection.
        test: fraction that is the test set where the folder has no such part.
        augment: random resized crop and flip in training; else the middle.
        per_class: take only the first so many training images of each class.
    Raises:
        DataError: as `image_files`, or the test part's classes are not the training part's.
        ConfigError: a fraction that leaves a part empty.
        MissingExtra: Pillow is not installed.
    """
    train, held_test = _parts(Path(path), size * 8 // 7, test, per_class)
    kept, held = hold_out(len(train), val)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    middle = Chain(CenterCrop(size), normalise)
    crop = Chain(RandomResizedCrop(size), RandomFlip(), normalise) if augment else middle
    batches = partial(Batches, batch_size=batch_size)
    return Dataset(
        train=batches(Subset(train, kept), seed=seed, shuffle=True, transform=crop),
        val=batches(Subset(train, held), transform=middle) if len(held) else None,
        test=batches(held_test, transform=middle),
        classes=len(train.classes),
        shape=(3, size, size),
    )


def _parts(path: Path, size: int, test: float, per_class: int | None) -> tuple[ImageFiles, ImageFiles]:
    """Training and test files."""
    folders = {part for name in _listing(path) for part in PurePosixPath(name).parts[:-2]}
    held = next((part for part in ("test", "val") if part in folders), None)
    if "train" in folders and held is not None:
        train, last = image_files(path, size, "train"), image_files(path, size, held)
        if train.classes != last.classes:
            raise DataError(f"{path}: the classes of 'train' and {held!r} differ")
    else:
        whole = image_files(path, size)
        first, second = hold_out(len(whole), test)
        train, last = _chosen(whole, first), _chosen(whole, second)
    return train if per_class is None else train.first(per_class), last


def _chosen(files: ImageFiles, indices: Tensor) -> ImageFiles:
    kept = indices.tolist()
    names = tuple(files.names[index] for index in kept)
    return replace(files, names=names, labels=tuple(files.labels[index] for index in kept))
