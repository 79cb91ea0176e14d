"""Losses against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.training.losses import contrastive, cross_entropy, distillation, pseudo_label


def test_cross_entropy_with_smoothing_is_the_mixture():
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.randint(7, (5,))
    log_p = logits.log_softmax(1)
    expected = -(0.9 * log_p[range(5), labels] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), expected)
    tokens = torch.randn(2, 3, 7)
    targets = torch.randint(7, (2, 3))
    torch.testing.assert_close(cross_entropy(tokens, targets), F.cross_entropy(tokens.transpose(1, 2), targets))


def test_distillation_is_the_scaled_divergence():
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    q, p = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (q * (q / p).log()).sum(1).mean()
    loss = distillation(student, teacher, 3.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, 3 * (p - q).detach() / 4)
    assert float(distillation(student, student).detach()) == pytest.approx(0, abs=1e-12)


def test_contrastive_by_hand_and_symmetric():
    left, right = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    s = torch.stack([torch.stack([F.cosine_similarity(a, b, 0) for b in right]) for a in left]) / 0.5
    rows = -s.log_softmax(1).diagonal().mean()
    columns = -s.log_softmax(0).diagonal().mean()
    torch.testing.assert_close(contrastive(left, right, 0.5), (rows + columns) / 2)
    torch.testing.assert_close(contrastive(left, right), contrastive(right, left))
    assert float(contrastive(torch.eye(3), torch.eye(3), 0.01)) == pytest.approx(0, abs=1e-6)


def test_pseudo_labels_use_only_what_is_sure():
    weak = torch.tensor([[9.0, 0.0], [0.1, 0.0]], requires_grad=True)
    strong = torch.tensor([[0.0, 1.0], [5.0, 0.0]], requires_grad=True)
    loss = pseudo_label(strong, weak, 0.9)
    torch.testing.assert_close(loss, F.cross_entropy(strong[:1], torch.tensor([0])) / 2)
    loss.backward()
    assert weak.grad is None
    assert strong.grad[1].tolist() == [0, 0]


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        distillation(torch.zeros(1, 2), torch.zeros(1, 2), 0)
    with pytest.raises(ConfigError, match="temperature must be positive, got -1"):
        contrastive(torch.zeros(1, 2), torch.zeros(1, 2), -1)
    with pytest.raises(ShapeError, match=r"student \(1, 2\) and teacher \(1, 3\)"):
        distillation(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"\(batch, dim\)"):
        contrastive(torch.zeros(2, 2), torch.zeros(3, 2))
