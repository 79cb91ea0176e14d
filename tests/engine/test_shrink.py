"""Channels go until the budget is met."""

import pytest
import torch

from gossamer.engine.shrink import shrink
from gossamer.errors import ConfigError
from gossamer.sparsify.accounting.flops import flops


@pytest.mark.parametrize("budget", [0.3, 0.7])
def test_the_budget_is_met_and_used(digits, budget):
    x = torch.randn(1, 1, 16, 16)
    small = shrink(digits, x, budget)
    cost = flops(small.model, x).dense
    assert cost == small.cost <= budget * flops(digits, x).dense
    assert cost > 0.8 * budget * flops(digits, x).dense
    assert small.model(x).shape == (1, 10)
    assert "times fewer" in str(small)


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
