"""AUROC against scikit-learn, ties included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from gossamer.errors import DataError, NumericsError
from gossamer.metrics.ood import auroc, top_probability

scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=20)


@given(scores, scores)
def test_auroc_equals_scikit_learn(a, b):
    want = roc_auc_score([1] * len(a) + [0] * len(b), a + b)
    assert auroc(torch.tensor(a), torch.tensor(b)) == pytest.approx(want)
    assert auroc(torch.tensor(b), torch.tensor(a)) == pytest.approx(1 - want)


def test_top_probability():
    assert top_probability(torch.tensor([[0.0, 0.0], [0.0, 50.0]])).tolist() == pytest.approx([0.5, 1.0])


def test_bad_input_is_named():
    with pytest.raises(DataError, match="both kinds"):
        auroc(torch.ones(0), torch.ones(2))
    with pytest.raises(NumericsError, match="NaN"):
        auroc(torch.tensor([torch.nan]), torch.ones(2))
