"""Batches as a pure function of (seed, step), and the small record that every loader returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import ConfigError, DataError, ShapeError

Kind = Literal["classification", "regression", "language"]
Transform = Callable[[Tensor, torch.Generator], Tensor]

_ORDER, _AUGMENT = 0, 1  # independent random streams of one seed


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on all of `key` (non-negative) and on nothing else."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


class Source(Protocol):
    """Samples that can be gathered by index: tensors in memory, image files, blocks of text."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]: ...


class Tensors:
    """Samples held in memory: tensors whose first dimensions agree, inputs first, targets after.

    Raises:
        ShapeError: no tensor, or first dimensions that differ.
    """

    def __init__(self, *tensors: Tensor) -> None:
        sizes = [len(tensor) for tensor in tensors]
        if not sizes or len(set(sizes)) > 1:
            raise ShapeError(f"tensors of one data set need equal first dimensions, got {sizes}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[indices] for tensor in self.tensors)


class Subset:
    """The samples of `source` at `indices` (int64, 1-D), in that order."""

    def __init__(self, source: Source, indices: Tensor) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        return self.source[self.indices[indices]]


class Batches:
    """Batches of a source; `batch(step)` depends on (seed, step) alone, so a resumed run sees the same data.

    Args:
        source: a `Source`, or a sequence of tensors with equal first dimension (inputs first).
        batch_size: samples in a batch; at most the whole source.
        seed: of the order and of the transform; non-negative.
        shuffle: a new permutation each epoch, and a last incomplete batch is dropped (a batch of one sample
            breaks batch normalisation). Without it the order is kept and the last batch may be smaller.
        transform: `(inputs, generator) -> inputs`, applied to the first tensor of each batch.
    Raises:
        DataError: the source is empty.
        ConfigError: batch_size < 1 or seed < 0.

    >>> batches = Batches([torch.arange(5.0)], batch_size=2)
    >>> len(batches), batches.batch(2)
    (3, (tensor([4.]),))
    """

    def __init__(
        self,
        source: Source | Sequence[Tensor],
        batch_size: int = 128,
        *,
        seed: int = 0,
        shuffle: bool = False,
        transform: Transform | None = None,
    ) -> None:
        self.source: Source = Tensors(*source) if isinstance(source, (tuple, list)) else source  # type: ignore[assignment]
        if len(self.source) == 0:
            raise DataError("a data set without samples cannot be split into batches")
        if batch_size < 1 or seed < 0:
            raise ConfigError(f"need batch_size >= 1 and seed >= 0, got {batch_size} and {seed}")
        self.batch_size = min(batch_size, len(self.source))
        self.seed, self.shuffle, self.transform = seed, shuffle, transform
        self._order: tuple[int, Tensor] | None = None

    @property
    def samples(self) -> int:
        """Samples in the source."""
        return len(self.source)

    def __len__(self) -> int:
        """Batches in one epoch."""
        per_epoch = self.samples / self.batch_size
        return math.floor(per_epoch) if self.shuffle else math.ceil(per_epoch)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of optimiser step `step` (>= 0, counted over all epochs); inputs first."""
        epoch, position = divmod(step, len(self))
        start = position * self.batch_size
        gathered = self.source[self._permutation(epoch)[start : start + self.batch_size]]
        return self._transformed(gathered, step)

    def reseeded(self, seed: int) -> Batches:
        """The same samples in the order, and with the augmentation, of another seed."""
        return Batches(self.source, self.batch_size, seed=seed, shuffle=self.shuffle, transform=self.transform)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches of the first epoch."""
        return (self.batch(step) for step in range(len(self)))

    def tensors(self) -> tuple[Tensor, ...]:
        """All samples at once, in the source's order, transformed."""
        return self._transformed(self.source[torch.arange(self.samples)], 0)

    def _transformed(self, batch: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
        if self.transform is None:
            return batch
        return self.transform(batch[0], generator(self.seed, _AUGMENT, step)), *batch[1:]

    def _permutation(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.samples)
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(self.samples, generator=generator(self.seed, _ORDER, epoch))
            self._order = (epoch, order)
        return self._order[1]


@dataclass(frozen=True)
class Dataset:
    """What a loader returns.

    Attributes:
        train: shuffled batches, augmented where the data set says so.
        val: held-out part of the training samples for every choice that is made, or None when `val=0`.
        test: fixed batches in order, for the final figure alone.
        classes: number of classes; vocabulary size for language; number of targets for regression.
        shape: of one input, without the batch dimension.
        kind: "classification", "regression" or "language".
    """

    train: Batches
    val: Batches | None
    test: Batches
    classes: int
    shape: tuple[int, ...]
    kind: Kind = "classification"


def hold_out(samples: int, val: float) -> tuple[Tensor, Tensor]:
    """Indices (train, val) of a fixed random split that holds out `round(val * samples)` samples.

    The split does not depend on a run's seed, so that runs of several seeds select on the same samples.

    Raises:
        ConfigError: `val` outside [0, 1), or one that leaves no training sample.
    """
    held = round(val * samples) if 0 <= val < 1 else samples
    if held >= samples:
        raise ConfigError(f"val={val}: the held-out fraction must lie in [0, 1) and leave training samples")
    order = torch.from_numpy(np.random.RandomState(1).permutation(samples))
    return order[held:].sort().values, order[:held].sort().values
