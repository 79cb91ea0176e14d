"""Optimisers and schedules against their formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.training.config import OptimConfig
from gossamer.training.optim import OPTIMIZERS, SCHEDULES, lr_factor, make_optimizer, set_lr


def factors(steps: int = 8, **options) -> list[float]:
    config = OptimConfig(**options)
    return [lr_factor(step, steps, config) for step in range(steps)]


def test_exact_schedules():
    assert factors(schedule="constant") == [1.0] * 8
    assert factors(4, schedule="linear", final=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert factors(4, schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * s / 4)) / 2 for s in range(4)])
    assert factors(8, schedule="step", milestones=(0.5, 0.75), gamma=0.5) == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert factors(8, schedule="constant", warmup=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.floats(0, 0.9), st.floats(0, 1), st.data())
def test_factors_stay_in_range_and_never_rise_after_the_warm_up(schedule, steps, warmup, final, data):
    config = OptimConfig(schedule=schedule, warmup=warmup, final=final)
    values = [lr_factor(step, steps, config) for step in range(steps)]
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    assert values[0] > 0
    begin = round(warmup * steps)
    assert values[:begin] == sorted(values[:begin])
    assert all(a >= b - 1e-12 for a, b in zip(values[begin:], values[begin + 1 :], strict=False))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimisers_take_their_settings(name):
    config = OptimConfig(name=name, lr=0.3, momentum=0.5, weight_decay=0.01, betas=(0.8, 0.9))
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], config)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)
    assert group.get("nesterov", False) == (name == "nesterov")
    if "betas" in group:
        assert group["betas"] == (0.8, 0.9)
    else:
        assert group["momentum"] == 0.5
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.1)
    assert group["lr"] == pytest.approx(0.03)


def test_the_tables_hold_what_the_configuration_allows():
    fields = OptimConfig.model_fields
    assert set(fields["name"].annotation.__args__) == set(OPTIMIZERS)
    assert set(fields["schedule"].annotation.__args__) == set(SCHEDULES)


def test_groups_keep_their_own_rates():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1.0, 0.1)]
    optimizer = make_optimizer(groups, OptimConfig())
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
