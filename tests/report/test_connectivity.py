"""Paths through masked networks: hand-made cases, brute force, and every kind of layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import ConfigError
from gossamer.models import build
from gossamer.models.mlp import mlp
from gossamer.report import connectivity


def test_a_hand_made_network():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = {
        # unit 0 is fed and used, unit 1 is fed and not used, unit 2 is used and not fed
        "0.weight": torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.bool),
        "2.weight": torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.bool),
    }
    found = connectivity(net, torch.zeros(4, 2), masks)
    assert (found.outputs, found.unreached, found.connected) == (2, (1,), False)
    assert [(layer.name, layer.kept, layer.effective) for layer in found.layers] == [
        ("0.weight", 3, 1),
        ("2.weight", 3, 1),
    ]
    assert found.effective == pytest.approx(2 / 6)


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.15, 0.4]))
def test_brute_force_agrees(seed, density):
    generator = torch.Generator().manual_seed(seed)
    model = mlp(shape=(1, 2, 3), classes=3, hidden=(5, 4))
    masks = {n: torch.rand(p.shape, generator=generator) < density for n, p in model.named_parameters() if p.ndim > 1}
    found = connectivity(model, torch.zeros(1, 1, 2, 3), masks)
    a, b, c = masks.values()
    fed1 = a.any(1)
    fed2 = (b & fed1).any(1)
    fed3 = (c & fed2).any(1)
    used2 = c.any(0)
    used1 = (b & used2[:, None]).any(0)
    assert found.unreached == tuple(torch.nonzero(~fed3).flatten().tolist())
    assert [layer.effective for layer in found.layers] == [
        int((a & used1[:, None]).sum()),
        int((b & fed1 & used2[:, None]).sum()),
        int((c & fed2).sum()),
    ]


@pytest.mark.parametrize("name", ["resnet-110", "mobilenet-digits", "convnet"])
def test_dense_networks_are_connected_at_any_depth(name):
    model = build(name, shape=(3, 16, 16), classes=10)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    found = connectivity(model, torch.zeros(1, 3, 16, 16))
    assert found.connected
    assert found.effective == 1.0
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_a_cut_layer_disconnects_everything():
    model = mlp(hidden=(16,))
    masks = {"fc1.weight": torch.zeros(16, 144, dtype=torch.bool)}
    found = connectivity(model, torch.zeros(1, 1, 12, 12), masks)
    assert len(found.unreached) == 10
    assert found.effective == 1.0  # nothing is kept, so nothing is kept in vain


def test_a_residual_path_survives_a_cut_branch():
    model = build("resnet-20", shape=(3, 8, 8), classes=10)
    cut = next(n for n, p in model.named_parameters() if p.ndim == 4 and "conv2" in n)
    mask = torch.zeros_like(model.get_parameter(cut), dtype=torch.bool)
    assert connectivity(model, torch.zeros(1, 3, 8, 8), {cut: mask}).connected


def test_bad_inputs_are_named():
    with pytest.raises(ConfigError, match=r"unknown masked parameter 'fc1.wieght'; did you mean 'fc1.weight'"):
        connectivity(mlp(hidden=(4,)), torch.zeros(1, 144), {"fc1.wieght": torch.ones(4, 144, dtype=torch.bool)})
    with pytest.raises(ConfigError, match="at least one sample"):
        connectivity(mlp(hidden=(4,)), torch.zeros(0, 144))
    with pytest.raises(ConfigError, match="returns one tensor, got tuple"):
        connectivity(nn.GRU(3, 4), torch.zeros(1, 2, 3))
