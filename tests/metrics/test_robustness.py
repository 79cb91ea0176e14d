"""FGSM on a model whose gradient is known."""

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, NumericsError
from gossamer.metrics.robustness import fgsm, fgsm_accuracy


def linear():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    return model


def test_step_goes_against_the_weight_of_the_true_class():
    x, y = torch.tensor([[0.5, 0.5], [0.2, 0.9]]), torch.tensor([0, 1])
    got = fgsm(linear(), x, y, 0.1)
    # d CE / d x = -(1 - p) * (w_true - w_other)
    assert torch.allclose(got, x + 0.1 * torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    assert torch.equal(fgsm(linear(), x, y, 0.0), x)
    assert torch.allclose(fgsm(linear(), x, y, 0.5, 0.0, 1.0), torch.tensor([[0.0, 1.0], [0.7, 0.4]]))


def test_accuracy_falls_and_nothing_is_left_behind():
    model = nn.Sequential(linear(), nn.Dropout(0.5)).train()
    x, y = torch.tensor([[1.0, 0.4], [0.0, 0.4]]), torch.tensor([0, 1])
    assert fgsm_accuracy(model, x, y, 0.0) == 1.0
    with torch.no_grad():
        assert fgsm_accuracy(model, x, y, 0.3) == 0.0
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="eps must not be negative, got -1"):
        fgsm(linear(), torch.ones(1, 2), torch.tensor([0]), -1)
    with pytest.raises(NumericsError, match="gradient at the inputs"):
        fgsm(linear(), torch.full((1, 2), torch.inf), torch.tensor([0]), 0.1)
