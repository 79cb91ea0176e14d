"""Scores, rules and votes by hand; the penalty against autograd; what must be refused."""

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, MaskError, NumericsError, ShapeError
from gossamer.models import build
from gossamer.sparsify import Recipe
from gossamer.sparsify.channels import (
    Choice,
    Energy,
    Ratio,
    Threshold,
    channel_graph,
    channel_rows,
    check_channels,
    choose_channels,
    vote,
)
from gossamer.sparsify.channels.choice import bn_scale, fpgm, l1
from gossamer.sparsify.regularizers import BNL1

IMAGE = torch.zeros(1, 3, 8, 8)


def bits(*values):
    return torch.tensor([bool(value) for value in values])


class Block(nn.Module):
    """Two convolutions summed with a projection: three batch norms share the channels of the sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.bn0(self.stem(x)).relu()
        x = (self.bn1(self.conv(x)) + x).relu()
        return self.head(x.mean((2, 3)))


def set_scales(model, **values):
    for name, scales in values.items():
        model.get_submodule(name).weight.data = torch.tensor(scales)


def test_vote_of_three_by_hand():
    """Against: channel 0 thrice, 1 twice, 2 once. The shortest ballot names two, so the level falls to two votes."""
    ballots = [bits(0, 0, 1, 1), bits(0, 0, 1, 1), bits(0, 1, 0, 1)]
    assert vote(ballots).tolist() == [False, False, True, True]
    assert vote([bits(0, 1, 1), bits(1, 0, 1)]).tolist() == [False, False, True]  # nobody agrees: the union goes
    assert vote([bits(1, 1), bits(0, 0)]).tolist() == [True, True]  # one prunes nothing
    assert vote([bits(1, 0)]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.0, 0.0, 0.0, 1.0], [0, 0, 0, 1]),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1]),
        ([1e-4, 0.5, 2e-3, 0.5], [0, 1, 0, 1]),
        ([9e-4, 1e-5, 0.0, 0.0], [0, 0, 0, 0]),  # below the floor: the whole layer
    ],
)
def test_energy_drops_what_carries_none(scores, kept):
    (keep,) = Energy()({"a": [torch.tensor(scores)]})["a"]
    assert keep.tolist() == [bool(k) for k in kept]


def test_ratios_are_exact_in_layers_and_globally():
    scores = {"a": [torch.tensor([4.0, 3.0, 2.0, 1.0])], "b": [torch.tensor([0.4, 0.3, 0.2, 0.1])]}
    layer = Ratio(0.5)(scores)
    assert [int(layer[name][0].sum()) for name in "ab"] == [2, 2]
    everywhere = Ratio(0.5, "global")(scores)
    assert [int(everywhere[name][0].sum()) for name in "ab"] == [4, 0]
    assert Threshold(2.0)(scores)["a"][0].tolist() == [True, True, False, False]


def test_a_residual_group_votes_and_keeps_one_channel():
    model = Block()
    graph = channel_graph(model, IMAGE)
    assert [group.name for group in graph.groups] == ["stem"]
    set_scales(model, bn0=[0.0, 0.0, 1.0, 1.0, 1.0, 1.0], bn1=[0.0, 1.0, 0.0, -1.0, 1.0, 1.0])
    assert choose_channels(model, graph)["stem"].tolist() == [False, False, False, True, True, True]
    set_scales(model, bn0=[0.0, 1e-3, 0.0, 0.0, 0.0, 0.0], bn1=[0.0] * 6)
    assert choose_channels(model, graph)["stem"].tolist() == [False, True, False, False, False, False]
    assert int(choose_channels(model, graph, Choice(least=4))["stem"].sum()) == 4


def test_filter_scores_by_hand():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, -4.0]])
    (group,) = channel_graph(model, torch.zeros(1, 2)).groups
    assert l1(model, group)[0].tolist() == [0.0, 3.5, 2.0]
    far = (9 + 64) ** 0.5
    assert fpgm(model, group)[0].tolist() == pytest.approx([9.0, 5 + far, 4 + far])
    model[1].weight.data = torch.tensor([-2.0, 0.5, 1.0])
    assert bn_scale(model, group)[0].tolist() == [2.0, 0.5, 1.0]


@pytest.mark.parametrize("score", ["bn_scale", "l1", "fpgm"])
def test_real_networks_are_cut_exactly(score):
    model = build("resnet-20")
    graph = channel_graph(model, torch.zeros(1, 3, 32, 32))
    masks = choose_channels(model, graph, Choice(score, Ratio(0.5), only=("layer2*",)))
    assert set(masks) == {f"layer2.{i}.conv1" for i in range(3)}
    assert all(int(mask.sum()) == 16 for mask in masks.values())


def test_rows_name_every_scale_of_a_group():
    model = Block()
    graph = channel_graph(model, IMAGE)
    rows = channel_rows(model, graph, {"stem": bits(1, 1, 0, 1, 1, 0)})
    assert rows == (("bn0.weight", "001001"), ("bn1.weight", "001001"))
    recipe = Recipe("m", regularizers=(BNL1(0.5, channels=rows),))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


# --------------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("digits", ["111111", "000000", "010110"])
def test_the_penalty_is_the_gradient_of_its_formula(digits):
    model = Block()
    set_scales(model, bn0=[1.0, -2.0, 0.5, -0.1, 3.0, 1.0])
    gone = torch.tensor([float(digit) for digit in digits])
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    plain = model.bn0.weight.grad.clone()
    BNL1(0.3, channels=(("bn0.weight", digits),)).add(model, {}, 0.0)
    gamma = model.bn0.weight.detach().clone().requires_grad_()
    (0.3 * (gamma.abs() * gone).sum()).backward()
    torch.testing.assert_close(model.bn0.weight.grad - plain, gamma.grad)
    assert model.bn0.bias.grad is not None


def test_all_channels_are_network_slimming_and_none_is_nothing():
    x = torch.randn(4, 3, 8, 8)
    graph = channel_graph(Block(), IMAGE)
    found = {}
    for name, penalty in {
        "slimming": BNL1(0.1),
        "all": BNL1(0.1, channels=channel_rows(Block(), graph, {"stem": torch.zeros(6, dtype=torch.bool)})),
        "none": BNL1(0.1, channels=channel_rows(Block(), graph, {"stem": torch.ones(6, dtype=torch.bool)})),
        "zero": BNL1(0.0),
        "plain": None,
    }.items():
        torch.manual_seed(0)
        model = Block()
        model(x).sum().backward()
        if penalty is not None:
            penalty.add(model, {}, 0.0)
        found[name] = [model.bn0.weight.grad, model.bn1.weight.grad, model.bn0.bias.grad]
    for one, two in (("slimming", "all"), ("none", "plain"), ("zero", "plain")):
        assert all(torch.equal(a, b) for a, b in zip(found[one], found[two], strict=True))
    assert torch.equal(found["slimming"][2], found["plain"][2])  # never beta
    assert not torch.equal(found["slimming"][0], found["plain"][0])


def test_the_proximal_step_ends_in_zeros():
    model = Block()
    set_scales(model, bn0=[0.05, -0.3, 0.05, 1.0, 1.0, 1.0])
    penalty = BNL1(1.0, channels=(("bn0.weight", "111000"),), proximal=True)
    penalty.after_step(model, {}, 0.0, lambda p: 0.1)
    assert model.bn0.weight.tolist() == pytest.approx([0.0, -0.2, 0.0, 1.0, 1.0, 1.0])


# --------------------------------------------------------------------------- refusals


def test_bad_choices():
    with pytest.raises(ConfigError, match="did you mean 'fpgm'"):
        Choice("fpgn")
    with pytest.raises(ConfigError, match="at least one channel"):
        Choice(least=0)
    with pytest.raises(ConfigError, match=r"sparsity in \[0, 1\)"):
        Ratio(1.0)
    graph = channel_graph(Block(), IMAGE)
    with pytest.raises(ConfigError, match="channel group 'steam'"):
        choose_channels(Block(), graph, Choice(only=("steam",)))
    for norm in (nn.Identity(), nn.BatchNorm1d(8, affine=False), nn.GroupNorm(2, 8)):
        bare = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 2))
        with pytest.raises(ConfigError, match=r"layer 0 has no scale to regularise"):
            choose_channels(bare, channel_graph(bare, torch.zeros(2, 4)))
    broken = Block()
    broken.bn0.weight.data[0] = float("nan")
    with pytest.raises(NumericsError, match="channels of stem"):
        choose_channels(broken, graph)


def test_given_masks_must_fit():
    graph = channel_graph(Block(), IMAGE)
    assert check_channels(graph, {"stem": bits(1, 0, 1, 1, 1, 1)})
    with pytest.raises(MaskError, match="all 6 channels of stem"):
        check_channels(graph, {"stem": torch.zeros(6, dtype=torch.bool)})
    with pytest.raises(ShapeError, match=r"stem needs a bool mask \(6,\)"):
        check_channels(graph, {"stem": bits(1, 0)})
    with pytest.raises(ConfigError, match="head cannot be changed: it is an output"):
        check_channels(graph, {"head": bits(1, 0, 1, 1)})
    with pytest.raises(ConfigError, match="no channel group 'stam'"):
        check_channels(graph, {"stam": bits(1)})


def test_bad_penalties():
    with pytest.raises(ConfigError, match="must not be negative"):
        BNL1(-1e-4)
    with pytest.raises(ConfigError, match="proximal"):
        BNL1(1e-4, proximal=True, smooth=0.1)
    with pytest.raises(ConfigError, match="row of 0 and 1"):
        BNL1(1e-4, channels=(("bn0.weight", "01x"),))
    model = Block()
    with pytest.raises(ConfigError, match="call backward before"):
        BNL1(1e-4).add(model, {}, 0.0)
    model(IMAGE).sum().backward()
    with pytest.raises(ConfigError, match=r"unknown batch-norm scale 'bn2\.weight'"):
        BNL1(1e-4, channels=(("bn2.weight", "01"),)).add(model, {}, 0.0)
    with pytest.raises(ShapeError, match="6 channels, its row has 2"):
        BNL1(1e-4, channels=(("bn0.weight", "01"),)).add(model, {}, 0.0)
    with pytest.raises(ConfigError, match="Linear has no batch-norm scale"):
        BNL1(1e-4).add(nn.Linear(2, 2), {}, 0.0)
