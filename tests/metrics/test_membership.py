"""Membership scores by formula, and the attack in its two limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import DataError
from gossamer.metrics.membership import entropy_score, loss_score, modified_entropy_score, threshold_attack

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)
Y = torch.tensor([0, 2])


def test_scores_by_formula():
    assert loss_score(P.log(), Y).tolist() == pytest.approx([math.log(0.7), math.log(0.3)])
    want = [sum(p * math.log(p) for p in row) for row in P.tolist()]
    assert entropy_score(P.log()).tolist() == pytest.approx(want)
    first = 0.3 * math.log(0.7) + 0.2 * math.log(0.8) + 0.1 * math.log(0.9)
    second = 0.7 * math.log(0.3) + 0.1 * math.log(0.9) + 0.6 * math.log(0.4)
    assert modified_entropy_score(P.log(), Y).tolist() == pytest.approx([first, second])


def test_certain_answers_are_no_nan():
    sure = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    right, wrong = modified_entropy_score(sure, torch.tensor([0, 1])).tolist()
    assert right == 0.0
    assert wrong <= -1000
    assert entropy_score(sure).tolist() == [0.0, 0.0]


def test_separable_and_equal_scores():
    perfect = threshold_attack(torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.5]))
    assert (perfect.threshold, perfect.balanced_accuracy, perfect.auroc) == (pytest.approx(0.8), 1.0, 1.0)
    assert perfect.members(torch.tensor([0.85, 0.6])).tolist() == [True, False]
    blind = threshold_attack(torch.ones(5), torch.ones(7))
    assert (blind.balanced_accuracy, blind.auroc) == (0.5, 0.5)


scores = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=15)


@given(scores, scores)
def test_no_threshold_is_better(members, others):
    a, b = torch.tensor(members), torch.tensor(others)
    got = threshold_attack(a, b)

    def balanced(cut):
        return (float((a >= cut).double().mean()) + float((b < cut).double().mean())) / 2

    assert got.balanced_accuracy == pytest.approx(balanced(got.threshold))
    assert got.balanced_accuracy >= max(balanced(c) for c in range(10)) - 1e-6


def test_one_sided_data_is_refused():
    with pytest.raises(DataError, match="both members and non-members"):
        threshold_attack(torch.ones(0), torch.ones(1))
