"""Accuracy, confusion matrix, accuracy per class and of the worst class."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import DataError, NumericsError, ShapeError


def check(logits: Tensor, labels: Tensor) -> None:
    """Refuse anything but finite logits (n, classes) with integer labels (n,) inside 0..classes-1, n >= 1."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"needs logits (n, classes) and labels (n,), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels):
        raise DataError("needs at least one sample, got none")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise DataError(f"labels must be integers in 0..{logits.shape[1] - 1}")
    if torch.isnan(logits).any() or (logits == float("inf")).any():
        raise NumericsError("logits hold NaN or +infinity")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is the label's.

    Args:
        logits: (n, classes); probabilities serve too. labels: (n,) integers.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    0.5
    """
    check(logits, labels)
    return float((logits.argmax(1) == labels).double().mean())


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts (classes, classes), int64: row = true class, column = predicted class."""
    check(logits, labels)
    classes = logits.shape[1]
    pairs = labels.long() * classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_accuracies(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy of each class (classes,), float64; NaN where a class has no sample."""
    table = confusion(logits, labels).double()
    return table.diagonal() / table.sum(1)


def worst_class(logits: Tensor, labels: Tensor) -> tuple[int, float]:
    """The class with the lowest accuracy, and that accuracy; absent classes are left out.

    Pruning may leave the mean untouched and ruin one class, so the worst is reported beside the mean.
    """
    scores = class_accuracies(logits, labels)
    index = int(scores.nan_to_num(nan=float("inf")).argmin())
    return index, float(scores[index])
