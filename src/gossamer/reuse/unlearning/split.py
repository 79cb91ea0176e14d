"""What is to be forgotten and what stays: two disjoint parts of the training samples, and a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.dataset import Batches, Dataset, Subset, generator
from ...data.transforms import CenterCrop, Chain, Normalise
from ...errors import ConfigError, DataError, ShapeError

CHUNK = 1024  # samples that are read at once where a whole set is gone through
_SPLIT = 3  # random stream of the drawn forget set


def as_batches(data: Any, name: str) -> Batches:
    """`data` as `Batches`: batches as they are, a pair (inputs, labels), or a dataset of (input, label) items.

    Raises:
        DataError: empty, or nothing of that kind. ShapeError: inputs and labels of different lengths.
    """
    if isinstance(data, Batches):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        if not len(data[1]):
            raise DataError(f"the {name} set is empty")
        return Batches(list(data), 256)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Tensor | tuple | list):
        if not len(data):
            raise DataError(f"the {name} set is empty")
        return Batches(_Items(data), 256)
    raise DataError(
        f"the {name} set is a {type(data).__name__}; pass Batches, a pair of tensors (inputs, labels), or a dataset "
        "of (input, label) items"
    )


class _Items:
    """A map-style dataset (torch's) as a source that is gathered by index."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        pairs = [self.items[int(index)] for index in indices]
        return torch.stack([torch.as_tensor(x) for x, _ in pairs]), torch.as_tensor([int(y) for _, y in pairs])


def shuffled(part: Batches, batch_size: int, seed: int) -> Batches:
    """The samples in training order: shuffled, augmented as they were."""
    return Batches(part.source, batch_size, seed=seed, shuffle=True, transform=part.transform)


def plain(part: Batches, batch_size: int = CHUNK) -> Batches:
    """The samples in order and without augmentation, to measure on."""
    return Batches(part.source, batch_size, transform=_unaugmented(part.transform))


def _unaugmented(transform: Any) -> Any:
    """What of a transform is no augmentation. One that is not known stays, and draws the same in every pass."""
    if isinstance(transform, Chain):
        return Chain(*(part for part in transform.parts if isinstance(part, Normalise | CenterCrop)))
    return transform


def labels_of(part: Batches) -> Tensor:
    """All labels (n,) int64, in the source's order."""
    pieces = [part.source[indices][1] for indices in torch.arange(part.samples).split(CHUNK)]
    return torch.cat(pieces).long()


@dataclass(frozen=True)
class ForgetSplit:
    """Training samples in two parts, and the samples to test on.

    Attributes:
        forget, retain: disjoint parts of the training samples; labels as they were.
        test: for accuracy and the membership attack; None measures neither.
        whole_classes: classes that are forgotten wholly, on purpose. Test accuracy then leaves them out.
    Raises:
        DataError: a class has samples to forget or to test on, but none in `retain`, and is not in `whole_classes`;
            or is in `whole_classes`, and `retain` still holds samples of it, or `forget` none.

    >>> x, y = torch.randn(6, 2), torch.tensor([0, 0, 1, 1, 2, 2])
    >>> split = ForgetSplit.by_class((x, y), 2)
    >>> split.forget.samples, split.retain.samples, split.whole_classes
    (2, 4, (2,))
    """

    forget: Batches
    retain: Batches
    test: Batches | None = None
    whole_classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        forget, retain = _classes(self.forget), _classes(self.retain)
        whole = set(self.whole_classes)
        missing = sorted((forget | (_classes(self.test) if self.test else set())) - retain - whole)
        if missing:
            raise DataError(
                f"the retain set has no sample of the classes {missing}, so nothing would hold them; if they are to be "
                f"forgotten wholly, say so with whole_classes={tuple(missing)}"
            )
        if whole & retain:
            raise DataError(
                f"whole_classes={sorted(whole)}, but the retain set holds samples of {sorted(whole & retain)}"
            )
        if whole - forget:
            raise DataError(
                f"whole_classes={sorted(whole)}, but the forget set has no sample of {sorted(whole - forget)}"
            )

    @staticmethod
    def of(forget: Any, retain: Any, test: Any = None, whole_classes: Sequence[int] = ()) -> ForgetSplit:
        """From sets as `as_batches` takes them."""
        tested = None if test is None else as_batches(test, "test")
        return ForgetSplit(as_batches(forget, "forget"), as_batches(retain, "retain"), tested, tuple(whole_classes))

    @staticmethod
    def by_index(data: Any, forget: Sequence[int] | Tensor, test: Any = None) -> ForgetSplit:
        """Forget the training samples at these positions. A class that loses all its samples counts as asked for.

        Args:
            data: a `Dataset`, whose `train` is split, or the training samples as `as_batches` takes them.
        Raises:
            DataError: no index, every index, one out of range or twice.
        """
        train, test = _train_of(data, test)
        index = torch.as_tensor(forget)
        if not index.numel():
            raise DataError("the forget set is empty: name at least one sample")
        if index.is_floating_point() or index.ndim != 1:
            raise ShapeError(f"forget is a list of whole numbers, got {index.dtype} of shape {tuple(index.shape)}")
        index = index.long()
        if int(index.min()) < 0 or int(index.max()) >= train.samples:
            bad = int(index.min()) if int(index.min()) < 0 else int(index.max())
            raise DataError(f"sample {bad} does not exist: the training set has samples 0 to {train.samples - 1}")
        if len(index.unique()) < len(index):
            twice = int(index.sort().values[:-1][index.sort().values.diff() == 0][0])
            raise DataError(f"sample {twice} is named twice in the forget set")
        if len(index) == train.samples:
            raise DataError("the forget set is the whole training set; nothing would be retained")
        stays = torch.ones(train.samples, dtype=torch.bool)
        stays[index] = False
        forgets, retains = (_part(train, which) for which in (index.sort().values, stays.nonzero()[:, 0]))
        gone = _classes(forgets) - _classes(retains)
        return ForgetSplit(forgets, retains, test, tuple(sorted(gone)))

    @staticmethod
    def by_class(data: Any, forget: int | Sequence[int], test: Any = None) -> ForgetSplit:
        """Forget all samples of some classes. Raises DataError for a class without samples."""
        train, test = _train_of(data, test)
        classes = (forget,) if isinstance(forget, int) else tuple(forget)
        labels = labels_of(train)
        for label in classes:
            if not bool((labels == label).any()):
                raise DataError(f"class {label} has no training sample; there are {sorted(set(labels.tolist()))}")
        gone = torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]
        return ForgetSplit.by_index(train, gone, test)

    @staticmethod
    def at_random(data: Any, share: float = 0.1, test: Any = None, seed: int = 0) -> ForgetSplit:
        """Forget a random share of the samples (the paper's 10 %). Raises ConfigError for a share outside (0, 1)."""
        if not 0 < share < 1:
            raise ConfigError(f"share of the samples to forget must lie strictly between 0 and 1, got {share}")
        train, test = _train_of(data, test)
        order = torch.randperm(train.samples, generator=generator(seed, _SPLIT))
        return ForgetSplit.by_index(train, order[: max(1, round(share * train.samples))], test)

    @property
    def scenario(self) -> str:
        """A few words for reports."""
        if self.whole_classes:
            return f"class-wise: {', '.join(map(str, self.whole_classes))}"
        return f"{self.forget.samples} single samples"

    def tested(self) -> Batches | None:
        """The test samples of the classes that stay."""
        if self.test is None or not self.whole_classes:
            return self.test
        stays = ~torch.isin(labels_of(self.test), torch.tensor(self.whole_classes))
        if not bool(stays.any()):
            raise DataError("the test set holds samples of the forgotten classes only")
        return _part(self.test, stays.nonzero()[:, 0])


def _classes(part: Batches) -> set[int]:
    return set(labels_of(part).unique().tolist())


def _part(whole: Batches, indices: Tensor) -> Batches:
    return Batches(Subset(whole.source, indices), whole.batch_size, seed=whole.seed, transform=whole.transform)


def _train_of(data: Any, test: Any) -> tuple[Batches, Batches | None]:
    if isinstance(data, Dataset):
        return data.train, data.test if test is None else as_batches(test, "test")
    return as_batches(data, "training"), None if test is None else as_batches(test, "test")
