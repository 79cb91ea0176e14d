"""Sub-networks of a parent: exact counts, equality with the smaller network, zeros that stay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.architectures.masks import MaskSpace, apply_masks, densities, hold, masked
from gossamer.errors import ConfigError, MaskError, ShapeError
from gossamer.models.mlp import mlp
from gossamer.sparsify.surgery import remove_channels

X = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def net(hidden=(20, 16), norm=False):
    torch.manual_seed(0)
    return mlp(shape=(1, 8, 8), hidden=hidden, norm=norm)


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.25, 0.5, 0.6]))
def test_every_draw_has_exact_counts(seed, rate):
    model = net((40, 20))
    space = MaskSpace.nodes(model, X, rate)
    masks = space.masks(space.space.sample(seed))
    kept = {name: int(mask.any(1).sum()) for name, mask in masks.items() if name in ("fc1.weight", "fc2.weight")}
    assert kept == {"fc1.weight": round(40 * (1 - rate)), "fc2.weight": round(20 * (1 - rate))}


@pytest.mark.parametrize("norm", [False, True])
def test_masked_equals_the_smaller_network(norm):
    model = net(norm=norm)
    space = MaskSpace.nodes(model, X, 0.5)
    drawn = space.space.sample(1)
    small = remove_channels(model.eval(), X, space.units(drawn), fold_constants=False).model
    assert small.fc1.out_features == 10
    apply_masks(model, space.masks(drawn))
    assert torch.allclose(model(X), small(X), atol=1e-6)
    with hold(model, space.masks(drawn)):
        model(X).square().sum().backward()
    small(X).square().sum().backward()
    rows = space.units(drawn)["fc1"]
    assert torch.allclose(model.fc1.weight.grad[rows], small.fc1.weight.grad, atol=1e-5)
    assert not model.fc1.weight.grad[~rows].any()
    inner = model.fc2.weight.grad[space.units(drawn)["fc2"]][:, rows]
    assert torch.allclose(inner, small.fc2.weight.grad, atol=1e-5)


def test_implied_weight_sparsity_is_the_counted_one():
    model = net((40, 40))
    space = MaskSpace.nodes(model, X, 0.8)
    masks = space.masks(space.space.sample(0))
    apply_masks(model, masks)
    counted = {name: float((p == 0).double().mean()) for name, p in model.named_parameters() if p.ndim > 1}
    assert counted == pytest.approx({"fc1.weight": 0.8, "fc2.weight": 1 - 0.2**2, "head.weight": 0.8})
    found = densities(model, masks)
    assert {name: 1 - found[name] for name in counted} == pytest.approx(counted)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_zeros_stay_under_momentum_and_decay(make):
    model = net()
    space = MaskSpace.weights(model, 0.8)
    masks = space.masks(space.space.sample(0))
    apply_masks(model, masks)
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.05, weight_decay=1e-2, **options)
    with hold(model, masks):
        for _ in range(5):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
    parameters = dict(model.named_parameters())
    assert all(not parameters[name][~mask].any() for name, mask in masks.items())
    assert any(parameters[name][mask].any() for name, mask in masks.items())
    optimizer.zero_grad()
    model(X).square().sum().backward()
    assert any(parameters[name].grad[~mask].any() for name, mask in masks.items())  # the hold has ended


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk"])
def test_weights_keep_their_share(allocation):
    model = net()
    space = MaskSpace.weights(model, 0.9, allocation)
    masks = space.masks(space.space.sample(0))
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert abs(kept - 0.1 * total) <= len(masks)


def test_nm_masks_hold_n_of_m():
    model = net((16, 12))
    masks = MaskSpace.nm(model, 2, 4).masks(MaskSpace.nm(model, 2, 4).space.sample(0))
    for mask in masks.values():
        assert bool((mask.view(-1, 4).sum(1) == 2).all())
    with pytest.raises(ShapeError, match="2:4"):
        MaskSpace.nm(net((15, 12)), 2, 4)


def test_ratios_obey_their_budget_and_keep_the_largest():
    model = net()
    space = MaskSpace.ratios(model, (0.1, 0.5, 1.0), budget=0.3)
    for seed in range(5):
        masks = space.masks(space.space.sample(seed))
        assert sum(int(m.sum()) for m in masks.values()) <= 0.3 * sum(m.numel() for m in masks.values()) + 1
        for name, mask in masks.items():
            weight = model.get_parameter(name).detach().abs()
            if not bool(mask.all()):
                assert weight[mask].min() >= weight[~mask].max()


def test_convolution_channels_are_nodes_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 10)
    ).eval()
    space = MaskSpace.nodes(model, X, 0.5)
    drawn = space.space.sample(0)
    small = remove_channels(model, X, space.units(drawn), fold_constants=False).model
    apply_masks(model, space.masks(drawn))
    assert torch.allclose(model(X), small(X), atol=1e-6)


def test_surviving_fan_in_restores_the_variance():
    weight, mask = torch.randn(400, 400), torch.zeros(400, 400, dtype=torch.bool)
    mask[:, :40] = True
    assert float(masked(weight, mask, "surviving").square().sum(1).mean()) == pytest.approx(400, rel=0.05)
    assert torch.equal(masked(weight, mask), weight * mask)
    with pytest.raises(MaskError, match="nothing"):
        masked(weight, mask & False)
    with pytest.raises(ConfigError, match="fan_in"):
        masked(weight, mask, "half")


def test_too_sparse_names_the_largest_sparsity():
    with pytest.raises(ConfigError, match=r"largest that leaves one is 0\.96875"):
        MaskSpace.nodes(net(), X, 0.97)
    for wrong in (1.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match=r"\[0, 1\)"):
            MaskSpace.nodes(net(), X, wrong)


def test_the_output_layer_is_never_masked():
    with pytest.raises(ConfigError, match="output of the network"):
        MaskSpace.nodes(net(), X, 0.5, only=("head",))
    assert [slot.name for slot in MaskSpace.nodes(net((20, 20)), X, 0.5).space.slots] == ["fc1", "fc2"]


def test_few_survivors_warn():
    with pytest.warns(UserWarning, match="2 nodes of fc1 survive"):
        MaskSpace.nodes(net((20, 20)), X, 0.9)


def test_masks_must_fit():
    with pytest.raises(ShapeError, match="fits no parameter"):
        apply_masks(net(), {"fc9.weight": torch.ones(2, 2, dtype=torch.bool)})
