"""The one table of data sets that users name, and `load`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gossamer.data.arrays import arrays, fashion_mnist_900
from gossamer.data.cifar import cifar10, cifar10_jpeg, cifar100
from gossamer.data.dataset import Dataset
from gossamer.data.digits import digits, noisy_digits, shifted_digits
from gossamer.data.idx import fashion_mnist, idx, mnist
from gossamer.data.images import images
from gossamer.data.text import text, tiny_shakespeare, wikitext2
from gossamer.errors import ConfigError, unknown

DATASETS: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "digits-shifted": shifted_digits,
    "digits-noisy": noisy_digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-900": fashion_mnist_900,
    "cifar10": cifar10,
    "cifar10-jpeg": cifar10_jpeg,
    "cifar100": cifar100,
    "tiny-shakespeare": tiny_shakespeare,
    "wikitext-2": wikitext2,
    "idx": idx,
    "images": images,
    "arrays": arrays,
    "text": text,
}


def load(name: str, **options: Any) -> Dataset:
    """The data set `name` of `DATASETS`.

    Args:
        name: a key of `DATASETS`.
        options: keyword arguments of that loader; all take `batch_size`, `seed` and `val`, and the general
            ones at the table's end need `path`.
    Raises:
        ConfigError: unknown name or option; the message gives the nearest known ones.
        DataError: files are missing or corrupt.

    >>> load("digits", batch_size=100).train.batch(0)[0].shape
    torch.Size([100, 1, 8, 8])
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    loader = DATASETS[name]
    known = inspect.signature(loader).parameters
    for option in options:
        if option not in known:
            raise unknown(f"option of data set {name!r}", option, known)
    needed = [key for key, value in known.items() if value.default is value.empty and key not in options]
    if needed:
        raise ConfigError(f"data set {name!r} needs the option {', '.join(needed)}")
    return loader(**options)
