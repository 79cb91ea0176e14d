"""Averages by hand, soups that must refuse, and batch statistics against direct computation."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import ConfigError, MaskError, NumericsError, ShapeError
from gossamer.models import build
from gossamer.sparsify.averaging import average, ema, greedy_soup, recalibrate_bn, swa


def masked(seed, mask_seed=0):
    """A linear layer whose zeros depend on `mask_seed` only."""
    torch.manual_seed(seed)
    layer = nn.Linear(8, 6)
    layer.weight.data *= torch.rand(6, 8, generator=torch.Generator().manual_seed(mask_seed)) < 0.5
    return layer


@given(k=st.integers(1, 5))
def test_the_mean_keeps_the_mask_exactly(k):
    models = [masked(seed) for seed in range(k)]
    mean = average(models)
    expected = torch.stack([m.weight.detach().double() for m in models]).mean(0).float()
    assert torch.equal(mean["weight"], expected)
    assert torch.equal(mean["weight"] == 0, models[0].weight == 0)


def test_weights_are_normalised():
    states = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}]
    assert average(states, [3, 1])["w"].item() == 2.0
    assert average(iter(states), [3, 1])["w"].item() == 2.0


def test_many_small_models_sum_in_double():
    states = ({"w": torch.tensor([0.1], dtype=torch.float16)} for _ in range(5000))
    assert average(states)["w"].item() == torch.tensor(0.1, dtype=torch.float16).item()


def test_unequal_masks_name_the_layer_and_give_the_union():
    models = [nn.Sequential(masked(s, 0), masked(s, s)) for s in range(2)]
    with pytest.raises(MaskError, match=r"1\.weight: \d+ zeros of model 1"):
        average(models)
    union = average(models, require_same_mask=False)["1.weight"] != 0
    assert torch.equal(union, (models[0][1].weight != 0) | (models[1][1].weight != 0))


def test_integer_buffers_take_the_largest():
    models = [nn.BatchNorm1d(2) for _ in range(2)]
    models[0].num_batches_tracked += 7
    mean = average(models)
    assert mean["num_batches_tracked"].item() == 7
    assert mean["num_batches_tracked"].dtype is torch.int64


def test_averaging_changes_no_model():
    model = masked(0)
    before = copy.deepcopy(model.state_dict())
    average([model, masked(1)])["weight"].zero_()
    assert torch.equal(model.weight, before["weight"])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_bad_weights(weights):
    with pytest.raises(ConfigError, match="weight"):
        average([masked(0), masked(1)], weights)


def test_bad_models():
    with pytest.raises(ConfigError, match="cannot average 0"):
        average([])
    with pytest.raises(ConfigError, match="cannot average 1 models with 2"):
        average(iter([masked(0)]), [1, 1])
    with pytest.raises(ConfigError, match="'bias'"):
        average([masked(0), {"weight": masked(1).weight}])
    with pytest.raises(ShapeError, match=r"weight has shape \(2, 2\) in model 1"):
        average([{"weight": torch.ones(3, 2)}, {"weight": torch.ones(2, 2)}])
    bad = masked(1)
    bad.bias.data[0] = float("nan")
    with pytest.raises(NumericsError, match="bias of model 1"):
        average([masked(0), bad])


def test_greedy_soup_takes_what_helps():
    """Score: closeness to 1. 0.5 is best alone, 1.5 corrects it, 9 would spoil it."""
    models = [{"w": torch.tensor([v])} for v in (9.0, 1.6, 0.5)]
    soup, chosen = greedy_soup(models, lambda state: -abs(state["w"].item() - 1))
    assert chosen == [2, 1]
    assert soup["w"].item() == pytest.approx(1.05)
    with pytest.raises(ConfigError, match="at least one"):
        greedy_soup([], lambda state: 0.0)
    with pytest.raises(NumericsError, match="model 0 is NaN"):
        greedy_soup(models, lambda state: float("nan"))


def test_running_averages_by_hand():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    exponential, equal = ema(model, 0.75), swa(model)
    for value in (0.0, 4.0, 8.0):
        model.weight.data.fill_(value)
        exponential.update_parameters(model)
        equal.update_parameters(model)
    assert exponential.module.weight.item() == 0.75 * 1.0 + 0.25 * 8.0
    assert equal.module.weight.item() == pytest.approx(4.0)
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        ema(model, 1.0)


def test_ema_keeps_a_static_mask():
    model = masked(0)
    average_ = ema(model, 0.9)
    for seed in range(3):
        model.load_state_dict(masked(seed).state_dict())
        average_.update_parameters(model)
    assert torch.equal(average_.module.weight == 0, model.weight == 0)


def test_recalibration_gives_the_exact_statistics():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.2))
    batches = [torch.randn(16, 4) for _ in range(5)]
    model.train()
    model[0].eval()
    model[2].running_mean += 100
    assert recalibrate_bn(model, [(x, None) for x in batches], 4) == 4
    outputs = [model[0](x).detach() for x in batches[:4]]
    torch.testing.assert_close(model[2].running_mean, torch.stack([y.mean(0) for y in outputs]).mean(0))
    torch.testing.assert_close(model[2].running_var, torch.stack([y.var(0) for y in outputs]).mean(0))
    assert model[2].momentum == 0.2
    assert [m.training for m in model] == [False, True, True]


def test_statistics_of_batch_norm_are_the_only_change():
    model = build("mobilenet-digits")
    before = copy.deepcopy(model.state_dict())
    recalibrate_bn(model, [{"input": torch.randn(4, 1, 16, 16)}])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("running" not in name and "num_batches" not in name), name


def test_models_without_batch_statistics_need_nothing(caplog):
    with caplog.at_level(logging.INFO):
        assert recalibrate_bn(build("vit-tiny")) == 0
    assert "nothing to recalibrate" in caplog.text


@pytest.mark.parametrize(("batches", "n"), [(None, None), ([], None), ([torch.randn(4, 3)], 2), ([], 0)])
def test_batch_norm_without_enough_data(batches, n):
    model = nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean += 1
    with pytest.raises(ConfigError, match="batch"):
        recalibrate_bn(model, batches, n)
    assert model[0].momentum == 0.1
