"""Whole-network rearrangement: the function stays, the inverse restores the bits, what must not move stays."""

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError
from gossamer.models.blocks import conv_bn
from gossamer.models.zoo import build
from gossamer.sparsify.rearrange import rearrange
from gossamer.sparsify.strips import OutBlock, layer_patterns, prune_strips_


class Coupled(nn.Module):
    """Residual sum, concatenation, depthwise convolution, normalisation, fully connected layer."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 16, 3, activation=nn.ReLU())
        self.left = conv_bn(16, 16, 3, activation=nn.ReLU())
        self.depthwise = conv_bn(16, 16, 3, groups=16, activation=nn.ReLU6())
        self.right = conv_bn(16, 16, 1)
        self.beside = conv_bn(16, 8, 1, activation=nn.ReLU())
        self.join = conv_bn(24, 12, 1, activation=nn.ReLU())
        self.hidden = nn.Linear(12, 10)
        self.out = nn.Linear(10, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.right(self.depthwise(self.left(x)))
        x = torch.cat([x, self.beside(x)], 1)
        return self.out(self.hidden(self.join(x).mean((2, 3))).relu())


def lively(model, seed=0):
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=source) * 0.3)
    return model.eval()


@pytest.fixture
def coupled():
    torch.manual_seed(0)
    return lively(Coupled())


def every(model, height=4):
    return layer_patterns(model, height, first_dense=False).patterns


@pytest.mark.parametrize("height", [2, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_function_stays_and_the_inverse_restores_the_bits(coupled, height, balanced):
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    coupled.double()
    patterns = {name: OutBlock(height, balanced) for name in every(coupled, height)}
    found = rearrange(coupled, x, patterns, 0.5)
    assert {"stem.conv", "left.conv", "join.conv", "hidden"} <= set(found.orders)
    moved = found.apply(coupled)
    assert not torch.equal(moved.left.conv.weight, coupled.left.conv.weight)
    with torch.no_grad():
        assert float((moved(x) - coupled(x)).abs().max()) < 1e-10
    restored = found.undo(moved)
    state = coupled.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in restored.state_dict().items())
    with torch.no_grad():
        wanted = coupled.float()(x.float())
        assert float((moved.float()(x.float()) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_the_residual_shares_one_order_and_the_gain_is_what_pruning_keeps(coupled):
    x = torch.randn(2, 3, 9, 9)
    patterns = every(coupled)
    found = rearrange(coupled, x, patterns, 0.5)
    groups = {row.layer: row.group for row in found.layers}
    assert groups["stem.conv"] == groups["right.conv"] == "stem.conv"
    assert "out" in found.refused or "out.weight" not in patterns
    moved = found.apply(coupled)
    before = {n: float(w.detach().abs().sum()) for n, w in coupled.named_parameters()}
    for attribute, model in (("before", coupled), ("after", moved)):
        prune_strips_(model, patterns, 0.5)
        for row in found.layers:
            name = f"{row.layer}.weight"
            share = float(model.get_parameter(name).detach().abs().sum()) / before[name]
            assert share == pytest.approx(getattr(row, attribute), rel=1e-5)
    assert found.before < found.after < found.free
    assert 0 < found.recovered < 1
    joint = [row for row in found.layers if row.group == "stem.conv"]
    assert sum((row.after - row.before) * row.total for row in joint) > 0


def test_outputs_stay_in_place():
    torch.manual_seed(0)
    model = lively(nn.Sequential(conv_bn(3, 8, 3, activation=nn.ReLU()), conv_bn(8, 8, 1)))
    patterns = layer_patterns(model, 4, first_dense=False).patterns
    found = rearrange(model, torch.randn(1, 3, 6, 6), patterns, 0.5)
    assert found.refused == {"1.conv": "it is an output of the network"}
    assert set(found.orders) == {"0.conv"}
    assert "1.conv stays: it is an output of the network" in str(found)
    assert found.as_json()["refused"] == found.refused


def test_grouped_convolutions_stay_in_place():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    found = rearrange(layers, torch.randn(1, 3, 6, 6), layer_patterns(layers, 4).patterns, 0.5)
    assert set(found.orders) <= {"0"}
    assert "groups" in found.refused["1"]


def test_an_optimiser_is_carried_along():
    torch.manual_seed(0)
    model = lively(Coupled())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = torch.randn(2, 3, 9, 9)
    model(x).square().sum().backward()
    optimizer.step()
    found = rearrange(model, x, every(model), 0.5)
    order = torch.tensor(found.orders["left.conv"])
    weight = model.left.conv.weight
    momentum = optimizer.state[weight]["momentum_buffer"].clone()
    inputs = torch.tensor(found.orders["stem.conv"])
    found.apply(model, inplace=True, optimizer=optimizer)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum[order][:, inputs])


def test_a_pruned_network_can_be_rearranged_in_another_order_again(coupled):
    x = torch.randn(2, 3, 9, 9)
    found = rearrange(coupled, x, every(coupled), 0.5)
    again = rearrange(found.apply(coupled), x, every(coupled), 0.5)
    assert again.before == pytest.approx(found.after, rel=1e-6)
    assert again.after >= again.before - 1e-12


def test_strips_that_a_group_does_not_fill_stay():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
            self.c, self.out = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.out(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))

    torch.manual_seed(0)
    model = Halves()
    found = rearrange(model, torch.randn(1, 3, 5, 5), layer_patterns(model, 4).patterns, 0.5)
    assert "do not fill whole strips" in found.refused["a"]
    assert "a" not in found.orders
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(found.apply(model)(x), model(x), atol=1e-6)
    even = rearrange(model, torch.randn(1, 3, 5, 5), layer_patterns(model, 2).patterns, 0.5)
    assert {"a", "b"} <= set(even.orders)
    assert torch.allclose(even.apply(model)(x), model(x), atol=1e-6)


def test_bad_input_is_named(coupled):
    x = torch.randn(2, 3, 9, 9)
    with pytest.raises(ConfigError, match=r"no parameter 'no\.weight'"):
        rearrange(coupled, x, {"no.weight": OutBlock(4)}, 0.5)
    with pytest.raises(ConfigError, match="fraction of zeros"):
        rearrange(coupled, x, every(coupled), 1.0)
    with pytest.raises(ConfigError, match="balanced strips"):
        rearrange(coupled, x, {"hidden.weight": OutBlock(4, balanced=True)}, 0.95)

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x) if x.sum() > 0 else x

    with pytest.raises(ConfigError, match="depends on data"):
        rearrange(Fork(), x, {"a.weight": OutBlock(4)}, 0.5)


def test_a_whole_mobile_network():
    torch.manual_seed(0)
    model = lively(build("mobilenet-digits"))
    x = torch.randn(2, 1, 16, 16)
    found = rearrange(model, x, layer_patterns(model).patterns, 0.5)
    assert len(found.orders) == 5
    with torch.no_grad():
        wanted = model(x)
        assert float((found.apply(model)(x) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert found.recovered > 0.15
