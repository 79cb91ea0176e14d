"""Channel groups of known networks, and refusals with their reasons."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.errors import ConfigError
from gossamer.models import build
from gossamer.sparsify import Group, Recipe, Sparsifier
from gossamer.sparsify.channels import channel_graph, channel_groups
from gossamer.sparsify.channels.labels import Labels
from gossamer.sparsify.scores import BNScale
from gossamer.sparsify.updates import SetTo


def places(group):
    """(tensor, dim) -> role."""
    return {(m.name, m.dim): role for m, role in zip(group.members, group.roles, strict=True)}


def test_a_perceptron_has_one_group_for_each_hidden_layer():
    graph = channel_graph(build("mlp", shape=(6,), hidden=(5, 4), classes=3), torch.randn(2, 6))
    assert [(g.name, g.shape) for g in graph.groups] == [("fc1", (5,)), ("fc2", (4,))]
    assert places(graph.groups[0]) == {
        ("fc1.weight", 0): "out",
        ("bn1.weight", 0): "scale",
        ("bn1.bias", 0): "shift",
        ("fc2.weight", 1): "in",
    }
    assert [b.name for b in graph.groups[0].buffers] == ["bn1.running_mean", "bn1.running_var"]
    assert graph.refused == {"head": "it is an output of the network"}
    assert graph.followed == {"fc1.weight": "bn1.running_mean", "fc2.weight": "bn2.running_mean"}


def test_residual_streams_share_one_group():
    model = build("resnet-20", option="B")
    graph = channel_graph(model, torch.randn(1, 3, 32, 32))
    stream = places(graph.group("conv1"))
    producers = {name for (name, dim), role in stream.items() if role == "out"}
    assert producers == {"conv1.weight", *(f"layer1.{i}.conv2.weight" for i in range(3))}
    readers = {name for (name, dim), role in stream.items() if role == "in"}
    assert readers == {
        *(f"layer1.{i}.conv1.weight" for i in range(3)),
        *("layer2.0.conv1.weight", "layer2.0.shortcut.0.weight"),
    }
    assert len(graph.groups) == 3 + 9


def test_zero_padded_shortcuts_hold_their_stream_but_not_the_inner_channels():
    graph = channel_graph(build("resnet-20", option="A"), torch.randn(1, 3, 32, 32))
    assert [g.name for g in graph.groups] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(3)]
    assert graph.refused["layer1.0.conv2"] == "zeros are added beside its channels"
    with pytest.raises(ConfigError, match="conv1 cannot be changed: zeros are added"):
        graph.group("conv1")
    with pytest.raises(ConfigError, match="no channel group 'nothing'"):
        graph.group("nothing")


def test_depthwise_convolutions_follow_their_producer():
    graph = channel_graph(build("mobilenet-digits"), torch.randn(1, 1, 16, 16))
    roles = places(graph.group("stem.conv"))
    assert roles["blocks.0.depthwise.conv.weight", 0] == "depthwise"
    assert roles["blocks.0.pointwise.conv.weight", 1] == "in"
    assert len(graph.group("stem.conv").buffers) == 4


def test_flattening_gives_each_channel_a_block_of_features():
    graph = channel_graph(build("lenet-5"), torch.randn(1, 1, 28, 28))
    (member,) = (m for m in graph.group("conv2").members if m.name == "fc1.weight")
    assert torch.equal(member.index, torch.arange(16 * 25).view(16, 25))


def test_concatenation_keeps_its_parts_apart():
    graph = channel_graph(build("unet"), torch.randn(1, 1, 16, 16))
    skip, deep = graph.group("down.1.1.conv"), graph.group("down.2.1.conv")
    index = {g.name: m.index for g in (skip, deep) for m in g.members if m.name == "up.0.0.conv.weight"}
    assert torch.equal(index["down.2.1.conv"].flatten(), torch.arange(64))
    assert torch.equal(index["down.1.1.conv"].flatten(), torch.arange(64, 96))


def test_squeeze_and_excitation_is_coupled_by_its_product():
    graph = channel_graph(build("efficientnet-b0"), torch.randn(1, 3, 32, 32))
    roles = places(graph.group("stem.conv"))
    assert roles["blocks.0.body.squeeze.expand.weight", 0] == "out"
    assert roles["blocks.0.body.squeeze.reduce.weight", 1] == "in"
    assert graph.group("blocks.0.body.squeeze.reduce").shape == (8,)


def test_heads_and_feed_forwards_of_transformers():
    vit = channel_graph(build("vit-tiny", depth=1), torch.randn(1, 3, 32, 32))
    assert [(g.name, g.shape) for g in vit.groups] == [("blocks.0.attention.q", (4,)), ("blocks.0.mlp.fc1", (256,))]
    assert "patches" in vit.refused
    llama = channel_graph(build("llama", depth=1, heads=4, kv_heads=2), torch.zeros(1, 8, dtype=torch.long))
    heads, hidden = llama.groups
    index = {m.name.split(".")[-2]: m.index for m in heads.members}
    assert {name: tuple(i.shape) for name, i in index.items()} == {
        "q": (2, 32),
        "k": (2, 16),
        "v": (2, 16),
        "out": (2, 32),
    }
    assert torch.equal(index["q"][1], torch.arange(32, 64))  # the query heads that share key head 1
    assert hidden.name == "blocks.0.mlp.gate"
    assert llama.refused["embed"] == "aten::mean reduces over channels"


def test_group_normalisation_binds_its_blocks():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    (group,) = channel_graph(model, torch.randn(1, 1, 5, 5)).groups
    assert group.shape == (4,)
    assert torch.equal(group.members[0].index, torch.arange(8).view(4, 2))


class Odd(nn.Module):
    """Two linear layers around a function."""

    def __init__(self, middle, inner=6):
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(4, 6), middle, nn.Linear(inner, 2)

    def forward(self, x):
        return self.second(self.middle(self.first(x)))


@pytest.mark.parametrize(
    ("middle", "inner", "reason"),
    [
        (lambda x: x.sort(-1).values, 6, "aten::sort is not understood"),
        (lambda x: F.layer_norm(x, (6,)), 6, "layer normalisation mixes all channels"),
        (lambda x: x.softmax(-1), 6, "mixes channels"),
        (lambda x: x - x.mean(-1, keepdim=True), 6, "reduces over channels"),
        (lambda x: x[:, :3], 3, "cuts its channels at fixed places"),
        (lambda x: x[:, 1:5:2], 2, "cuts its channels at fixed places"),
        (lambda x: x + torch.arange(6.0), 6, "meets a constant"),
        (lambda x: F.pad(x, (1, 1)), 8, "zeros are added beside"),
        (lambda x: x @ (x.T @ x), 6, "aten::mm is not understood"),
        (lambda x: x.view(-1, 2, 3).sum(1), 3, "reduces over channels"),
    ],
)
def test_what_is_not_understood_stays_and_says_why(middle, inner, reason):
    graph = channel_graph(Odd(middle, inner), torch.randn(3, 4))
    assert graph.groups == []
    assert reason in graph.refused["first"]


@pytest.mark.parametrize(
    ("middle", "units", "width"),
    [
        (lambda x: F.relu_(x * 2.0 + 1.0), 6, 1),
        (lambda x: x.clamp(min=0).unsqueeze(1).squeeze(1), 6, 1),
        (lambda x: F.glu(x, -1), None, None),
        (lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1], 3, 2),
        (lambda x: torch.cat([x.relu(), (-x).relu()], -1), 6, 1),
        (lambda x: x.flip(-1), 6, 1),
        (lambda x: x + x.flip(-1), 3, 2),
        (lambda x: x.expand(3, 6).T.contiguous().T, 6, 1),
    ],
)
def test_data_movement_is_followed(middle, units, width):
    inner = middle(torch.randn(3, 6)).shape[-1]
    graph = channel_graph(Odd(middle, inner), torch.randn(3, 4))
    if units is None:
        assert "glu is not understood" in graph.refused["first"]
        return
    (group,) = graph.groups
    assert group.shape == (units,)
    assert group.members[0].reduce(torch.randn(6, 4)).shape == (units,)
    index = group.members[0].index
    assert (1 if index is None else index.shape[1]) == width


def test_grouped_convolutions_and_raw_inputs_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = channel_graph(model, torch.randn(1, 4, 5, 5))
    assert graph.groups == []
    assert graph.refused["0"] == graph.refused["1"] == "1.weight is a convolution in 2 groups"


def test_attention_modules_of_torch_keep_their_width():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.f, self.g = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.a(x)
            return self.g(self.f(h + self.attention(h, h, h)[0]).relu())

    graph = channel_graph(Model(), torch.randn(2, 3, 4))
    assert [g.name for g in graph.groups] == ["f"]
    assert graph.refused["a"] == "nn.MultiheadAttention cannot change its width"


def test_a_layer_used_twice_couples_its_two_ends():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 2))
    (group,) = channel_graph(model, torch.randn(2, 4)).groups
    assert set(places(group)) == {
        *(("0.weight", 0), ("0.bias", 0), ("6.weight", 1)),
        *(("2.weight", 0), ("2.weight", 1), ("2.bias", 0)),
    }


def test_factors_of_channels_belong_to_their_group():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.factor, self.head = (
                nn.Conv2d(1, 5, 3),
                nn.Parameter(torch.ones(5, 1, 1)),
                nn.Conv2d(5, 1, 1),
            )

        def forward(self, x):
            return self.head(self.conv(x) * self.factor)

    (group,) = channel_graph(Scaled(), torch.randn(1, 1, 4, 4)).groups
    assert places(group)["factor", 0] == "factor"


def test_the_batch_of_the_example_does_not_matter():
    model = build("mobilenet-v2", shape=(3, 32, 32))
    one, three = (channel_graph(model, torch.randn(b, 3, 32, 32)) for b in (1, 3))
    assert one == three


def test_tracing_leaves_no_trace():
    model = build("mobilenet-digits")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    channel_graph(model, torch.randn(4, 1, 16, 16))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_refusals_are_logged_and_parametrisations_refused(caplog):
    model = build("mlp", shape=(6,), hidden=(8,), classes=4)
    with caplog.at_level(logging.INFO):
        groups = channel_groups(model, torch.randn(2, 6))
    assert [g.name for g in groups] == ["fc1"]
    assert "channels of head stay: it is an output" in caplog.text
    nn.utils.parametrizations.weight_norm(model.fc1)
    with pytest.raises(ConfigError, match="finalize"):
        channel_graph(model, torch.randn(2, 6))


def test_a_sparsifier_prunes_whole_channels():
    model = build("mobilenet-digits")
    groups = channel_groups(model, torch.randn(1, 1, 16, 16))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    sparsifier = Sparsifier(model, optimizer, recipes.rigl(0.5, every=2), 8, groups=groups)
    for _ in range(8):
        F.cross_entropy(model(torch.randn(4, 1, 16, 16)), torch.randint(0, 10, (4,))).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.check()
    assert abs(sparsifier.density() - 0.5) < 1e-2
    for group in groups:
        for member in group.members:
            weight = model.get_parameter(member.name).detach().movedim(member.dim, 0)
            dropped = ~sparsifier.masks[group.name]
            rows = dropped if member.index is None else member.index[dropped].flatten()
            assert int(weight[rows].count_nonzero()) == 0, member.name


def test_scales_alone_rank_channels_by_bn_scale():
    model = build("mlp", shape=(4,), hidden=(3,), classes=2)
    model.bn1.weight.data = torch.tensor([1.0, -3.0, 2.0])
    model.bn1.bias.data = torch.tensor([9.0, 0.0, 0.0])
    groups = channel_groups(model, torch.randn(2, 4))
    recipe = Recipe(updates=(SetTo(BNScale(), 2 / 3),))
    sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 2, groups=groups)
    assert sparsifier.masks["fc1"].tolist() == [False, True, True]


def test_groups_replace_the_selection():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    units = channel_groups(model, torch.randn(1, 4))
    recipe = recipes.magnitude(0.5)
    assert isinstance(recipe.updates[0], SetTo)
    sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 2, groups=units)
    assert all(isinstance(g, Group) for g in sparsifier.groups)
    assert [int(m.sum()) for m in sparsifier.masks.values()] == [3]
    assert int((model[0].weight.abs().sum(1) == 0).sum()) == 3


def test_disjoint_sets_keep_the_reason_when_they_meet():
    sets = Labels()
    a, b, c = sets.fresh(2), sets.fresh(2), sets.fresh(2)
    sets.freeze(b[:1], "why")
    sets.unite(a, b)
    assert sets.reason(int(a[0])) == "why"
    assert sets.reason(int(a[1])) is None
    sets.unite(c, a.flip(0))
    assert [sets.reason(int(x)) for x in c] == [None, "why"]
