"""The one table of data sets that users name, and `load`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gossamer.data.dataset import Dataset
from gossamer.data.digits import digits, noisy_digits, shifted_digits
from gossamer.errors import unknown

DATASETS: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "digits-shifted": shifted_digits,
    "digits-noisy": noisy_digits,
}


def load(name: str, **options: Any) -> Dataset:
    """The data set `name` of `DATASETS`.

    Args:
        name: a key of `DATASETS`.
        options: keyword arguments of that loader; all take `batch_size`, `seed` and `val` (held-out fraction).
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
    return loader(**options)
