"""Channels go until the budget is met."""

import pytest
import torch
from torch import nn

from gossamer.engine import tune
from gossamer.engine.shrink import shrink
from gossamer.errors import ConfigError
from gossamer.models.zoo import build
from gossamer.sparsify.accounting.flops import flops


@pytest.mark.parametrize("budget", [0.3, 0.7])
def test_the_budget_is_met_and_used(digits, budget):
    x = torch.randn(1, 1, 16, 16)
    small = shrink(digits, x, budget)
    cost = flops(small.model, x).dense
    assert cost == small.cost <= budget * flops(digits, x).dense
    assert cost > 0.8 * budget * flops(digits, x).dense
    assert small.model(x).shape == (1, 10)
    assert "times less" in str(small)


@pytest.mark.slow  # a measured time decides; a busy machine may refuse the budget
def test_latency(digits):
    small = shrink(digits, torch.randn(16, 1, 16, 16), 0.9, by="latency")
    assert small.cost <= 0.9 * small.before


def test_bad_budgets(digits):
    x = torch.randn(1, 1, 16, 16)
    for budget in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"\(0, 1\]"):
            shrink(digits, x, budget)
    with pytest.raises(ConfigError, match="costs more"):
        shrink(digits, x, 1e-6)
    with pytest.raises(ConfigError, match="did you mean 'flops'"):
        shrink(digits, x, 0.5, by="flop")


def test_a_budget_of_one_removes_nothing(digits):
    small = shrink(digits, torch.randn(1, 1, 16, 16), 1)
    assert (small.removed, small.cost) == (0.0, small.before)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(small.model(x), digits(x), atol=1e-6)


@pytest.mark.parametrize("by", ["flops", "latency"])
def test_a_model_in_training_mode_is_measured_without_changing_it(by, monkeypatch):
    monkeypatch.setattr(tune, "RACE_SECONDS", 0.0)
    model = build("mobilenet-digits").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = shrink(model, torch.randn(4, 1, 16, 16), 1 if by == "latency" else 0.5, by=by)
    assert model.training
    assert small.model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_networks_and_examples_that_do_not_fit_are_named(digits):
    with pytest.raises(ConfigError, match=r"no channels of this Sequential can be removed \(0: it is an output"):
        shrink(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4), 0.5)
    with pytest.raises(ConfigError, match=r"shape \(1, 3, 16, 16\)\): in its layer 'stem.conv'"):
        shrink(digits, torch.randn(1, 3, 16, 16), 0.5)
    with pytest.raises(ConfigError, match=r"does not accept the example.*Double"):
        shrink(digits, torch.randn(1, 1, 16, 16, dtype=torch.float64), 0.5)
