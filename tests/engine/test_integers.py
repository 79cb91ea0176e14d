"""8-bit layers in a model."""

import pytest
import torch
from torch import nn

from gossamer.engine import tune
from gossamer.engine.integers import Int8Linear, swap_int8
from gossamer.errors import ConfigError
from gossamer.kernels import native
from gossamer.kernels.int8 import pack_int8
from gossamer.kernels.int8_steps import pack_int8_steps

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


@pytest.fixture
def always_faster(monkeypatch):
    order = {"int8 steps": 1.0, "int8": 2.0, "torch": 3.0}
    monkeypatch.setattr(tune, "race", lambda runs, threads: {name: order[name] for name in runs})


@pytest.fixture
def model(pruned):
    torch.manual_seed(0)
    return pruned(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64)), 0.8).eval()


def test_swapped_layers_are_near_and_survive_saving(model, always_faster):
    x = torch.randn(3, 256)
    wanted = model(x).detach()
    assert swap_int8(model, x) == {"0": "int8 steps", "2": "int8 steps"}
    assert isinstance(model[0], Int8Linear)
    found = model(x)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.03
    assert {"0.weight_values", "0.bias"} <= set(model.state_dict())


def test_both_formats_of_a_layer_give_the_same_bits():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(60, 300) * (torch.rand(60, 300) < 0.2), torch.randn(60), torch.randn(2, 300)
    assert torch.equal(Int8Linear(pack_int8(weight), bias)(x), Int8Linear(pack_int8_steps(weight), bias)(x))


def test_reasons_to_stay(model, always_faster):
    assert "32 vectors" in swap_int8(model, torch.randn(32, 256))["0"]
    assert "off by" in swap_int8(model, torch.randn(1, 256), most_error=1e-6)["0"]
    assert type(model[0]) is nn.Linear
    with pytest.raises(ConfigError, match="training mode"):
        swap_int8(model.train(), torch.randn(1, 256))


def test_a_slower_layer_stays(model, monkeypatch):
    monkeypatch.setattr(tune, "race", lambda runs, threads: {"int8": 0.002, "int8 steps": 0.003, "torch": 0.001})
    assert swap_int8(model, torch.randn(1, 256)) == {"0": "it took 2 us against 1", "2": "it took 2 us against 1"}
