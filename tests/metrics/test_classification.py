"""Counting, by hand and against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix

from gossamer.errors import DataError, NumericsError, ShapeError
from gossamer.metrics.classification import accuracy, class_accuracies, confusion, worst_class

G = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(200, 5, generator=G), torch.randint(0, 5, (200,), generator=G)


def test_counts_equal_scikit_learn():
    want = confusion_matrix(LABELS, LOGITS.argmax(1))
    assert torch.equal(confusion(LOGITS, LABELS), torch.from_numpy(want))
    assert accuracy(LOGITS, LABELS) == pytest.approx(want.trace() / 200)


def test_worst_class_by_hand():
    logits = torch.eye(3)[[0, 0, 1, 2, 2]]
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert class_accuracies(logits, labels).tolist() == [1.0, 0.5, 1.0]
    assert worst_class(logits, labels) == (1, 0.5)


def test_an_absent_class_is_not_the_worst():
    logits = torch.eye(3)[[0, 1]]
    scores = class_accuracies(logits, torch.tensor([0, 0]))
    assert scores[0] == 0.5
    assert all(math.isnan(s) for s in scores[1:])
    assert worst_class(logits, torch.tensor([0, 0])) == (0, 0.5)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), ShapeError, r"needs logits \(n, classes\)"),
        (torch.zeros(3, 2), torch.zeros(2).long(), ShapeError, r"\(3, 2\) and \(2,\)"),
        (torch.zeros(0, 2), torch.zeros(0).long(), DataError, "at least one sample"),
        (torch.zeros(1, 2), torch.tensor([2]), DataError, r"integers in 0\.\.1"),
        (torch.zeros(1, 2), torch.tensor([0.0]), DataError, "integers"),
        (torch.full((1, 2), torch.nan), torch.tensor([0]), NumericsError, "NaN"),
    ],
)
def test_bad_input_is_named(logits, labels, error, message):
    with pytest.raises(error, match=message):
        accuracy(logits, labels)
