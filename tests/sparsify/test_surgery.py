"""Surgery: the small model computes what the masked one did, and is really smaller."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.errors import CheckpointError, ConfigError, GossamerError, MaskError, ShapeError
from gossamer.models import build
from gossamer.models.blocks import conv_bn, pooled_head
from gossamer.models.efficientnet import MBConv
from gossamer.sparsify import Recipe, Sparsifier, accounting, surgery
from gossamer.sparsify.allocation import Uniform
from gossamer.sparsify.channels import channel_graph, channel_groups
from gossamer.sparsify.estimators import Projected
from gossamer.sparsify.groups import entry_masks
from gossamer.sparsify.regularizers import BNL1
from gossamer.sparsify.scores import BNScale
from gossamer.sparsify.updates import SetTo

IMAGE = (2, 3, 32, 32)
MODELS = {
    "mlp": ({"shape": (12,), "hidden": (9, 7)}, (2, 12)),
    "lenet-5": ({}, (2, 1, 28, 28)),
    "vgg": ({"channels": (8, 12, 12, 16)}, (2, 1, 12, 12)),
    "resnet-20": ({"option": "B"}, IMAGE),
    "wide-resnet": ({"depth": 10, "factor": 1}, IMAGE),
    "mobilenet-digits": ({}, (2, 1, 16, 16)),
    "squeeze": ({}, (2, 3, 8, 8)),
    "unet": ({}, (2, 1, 16, 16)),
    "vit-tiny": ({"depth": 2}, IMAGE),
    "llama": ({"depth": 2, "heads": 4, "kv_heads": 2, "tied": True}, None),
}


def make(name):
    """A model of MODELS; "squeeze" is two blocks of EfficientNet, "vgg" a plain chain of convolutions."""
    if name == "squeeze":
        return nn.Sequential(conv_bn(3, 6, 3), MBConv(6, 6, 1, 2, 3), MBConv(6, 8, 2, 2, 5), pooled_head(8, 4))
    return build("convnet" if name == "vgg" else name, **MODELS[name][0])


def prepared(name):
    """A model in float64 with non-trivial batch statistics, and an example."""
    shape = MODELS[name][1]
    model = randomised(make(name).double())
    example = torch.randn(shape, dtype=torch.float64) if shape else torch.randint(0, 256, (2, 8))
    return model, example


def randomised(model):
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(0.1, 1)  # positive: ReLU lets the constants pass
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def half_masks(graph):
    """Random unit masks that keep about half, at least one, of every group."""
    masks = {}
    for group in graph.groups:
        mask = torch.rand(group.shape) < 0.5
        mask[int(torch.randint(group.numel, ()))] = True
        masks[group.name] = mask
    return masks


def apply(model, graph, masks):
    """Zero every member of the dropped units, as a Sparsifier does."""
    parameters = dict(model.named_parameters())
    for name, mask in entry_masks(graph.groups, masks, parameters).items():
        parameters[name].data.mul_(mask)
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fold", [True, False])
def test_removal_of_masked_channels_is_exact(name, fold):
    model, example = prepared(name)
    graph = channel_graph(model, example)
    masks = half_masks(graph)
    apply(model, graph, masks)
    wanted = model(example)
    before = copy.deepcopy(model.state_dict())
    result = surgery.remove_channels(model, example, masks, fold_constants=fold)
    torch.testing.assert_close(result.model(example), wanted, rtol=0, atol=1e-10)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    large, small = accounting.flops(model, example, {}), accounting.flops(result.model, example, {})
    assert small.dense < 0.75 * large.dense
    sizes = [accounting.sparsity(m, {}, "all").total for m in (model, result.model)]
    assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize("name", ["mlp", "lenet-5", "resnet-20", "mobilenet-digits", "squeeze", "llama"])
def test_the_plan_rebuilds_the_small_model(name):
    model, example = prepared(name)
    graph = channel_graph(model, example)
    result = surgery.remove_channels(model, example, half_masks(graph))
    plan = json.loads(json.dumps(result.plan))
    fresh = surgery.apply_shrink_plan(make(name).double(), plan).eval()
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(example), result.model(example))
    assert str(fresh) == str(result.model)


@pytest.mark.parametrize("name", ["mlp", "lenet-5", "resnet-20", "mobilenet-digits"])
def test_the_small_model_trains(name):
    model, example = prepared(name)
    small = surgery.remove_channels(model, example, half_masks(channel_graph(model, example))).model.train()
    optimizer = torch.optim.SGD(small.parameters(), 0.01, momentum=0.9)
    small(example).square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_a_trained_recipe_ends_in_a_small_model():
    model = build("mobilenet-digits")
    example = torch.randn(2, 1, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    groups = channel_groups(model, example)
    sparsifier = Sparsifier(model, optimizer, recipes.magnitude(0.5, Uniform()), 3, groups=groups)
    for _ in range(3):
        F.cross_entropy(model(torch.randn(8, 1, 16, 16)), torch.randint(0, 10, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finalize().eval()
    result = surgery.remove_channels(model, example, sparsifier.masks)
    torch.testing.assert_close(result.model(example), model(example), atol=1e-5, rtol=1e-5)
    assert result.folds == []
    assert accounting.flops(result.model, example).dense < accounting.flops(model, example, {}).dense


# --------------------------------------------------------------------------- constants


def silent(model, graph, masks):
    """Scales of dropped channels are 0 and their shifts are not: they emit constants."""
    parameters = dict(model.named_parameters())
    for group in graph.groups:
        for member, role in zip(group.members, group.roles, strict=True):
            if role in ("scale", "out", "depthwise"):
                mask = torch.ones_like(parameters[member.name], dtype=torch.bool)
                member.write(masks[group.name], mask)
                parameters[member.name].data.mul_(mask)
    return model


@pytest.mark.parametrize(
    ("name", "into"),
    [
        ("mlp", {"running mean", "bias"}),
        ("lenet-5", {"bias"}),
        ("vit-tiny", {"bias"}),
        ("llama", set()),
    ],
)
def test_constants_without_padding_fold_exactly(name, into):
    model, example = prepared(name)
    graph = channel_graph(model, example)
    masks = half_masks(graph)
    wanted = silent(model, graph, masks)(example)
    result = surgery.remove_channels(model, example, masks)
    torch.testing.assert_close(result.model(example), wanted, rtol=0, atol=1e-10)
    assert {fold.into for fold in result.folds} == into
    assert all(fold.exact for fold in result.folds)
    lost = surgery.remove_channels(model, example, masks, fold_constants=False).model(example)
    assert torch.allclose(lost, wanted) == (not into)


def conv_model(padding, norm):
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=padding, bias=False)]
    return randomised(nn.Sequential(*layers, *([nn.BatchNorm2d(5)] if norm else []), nn.Tanh()).double())


@pytest.mark.parametrize(("norm", "into"), [(True, "running mean"), (False, "new bias")])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_without_bias_fold_into_what_follows(norm, into, padding):
    model, x = conv_model(padding, norm), torch.randn(2, 2, 9, 9, dtype=torch.float64)
    graph = channel_graph(model, x)
    masks = {"0": torch.tensor([True, False, True, False, True, False])}
    wanted = silent(model, graph, masks)(x)
    result = surgery.remove_channels(model, x, masks)
    (fold,) = result.folds
    got = result.model(x)
    assert (fold.layer, fold.into, fold.exact) == ("3", into, padding == 0)
    inside = (slice(None), slice(None), slice(padding, -padding or None), slice(padding, -padding or None))
    torch.testing.assert_close(got[inside], wanted[inside], rtol=0, atol=1e-10)
    assert (result.difference < 1e-10) == (padding == 0)
    assert ("border" in fold.reason) == (padding == 1)
    fresh = surgery.apply_shrink_plan(conv_model(padding, norm), json.loads(json.dumps(result.plan)))
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh.eval()(x), got)


def test_padded_folding_beats_losing_the_constant():
    model, x = conv_model(1, False), torch.randn(2, 2, 9, 9, dtype=torch.float64)
    graph = channel_graph(model, x)
    masks = {"0": torch.arange(6) < 3}
    wanted = silent(model, graph, masks)(x)
    errors = [
        float((surgery.remove_channels(model, x, masks, fold_constants=fold).model(x) - wanted).detach().abs().mean())
        for fold in (True, False)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_constants_through_two_layers_at_once():
    """The constant of a removed channel is not lost when the layer that reads it loses channels, too."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    graph = channel_graph(model, x)
    masks = {"0": torch.tensor([True, False, True, True]), "2": torch.tensor([False, True, True, False, True])}
    wanted = silent(model, graph, masks)(x)
    torch.testing.assert_close(surgery.remove_channels(model, x, masks).model(x), wanted, rtol=0, atol=1e-12)


def test_slimming_with_the_sparsifier():
    """MaskSparsity's last steps: L1 on the scales of dropped channels alone makes their removal lossless."""
    model = build("mlp", shape=(12,), hidden=(16, 8), classes=4)
    x, y = torch.randn(64, 12), torch.randint(0, 4, (64,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recipe = Recipe(
        "mask-sparsity",
        family=Projected(mask_grad=False),
        updates=(SetTo(BNScale(), 0.5, Uniform()),),
        regularizers=(BNL1(1.0, "pruned"),),  # stronger than the loss, so that the scales do reach zero
    )
    sparsifier = Sparsifier(model, optimizer, recipe, 300, groups=channel_groups(model, x))
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 200 else 0.002  # then the last oscillation dies out
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.remove()
    model.eval()
    small = surgery.remove_channels(model, x, sparsifier.masks).model
    agree = (small(x).argmax(1) == model(x).argmax(1)).float().mean()
    assert agree >= 0.98
    assert model.bn1.weight[~sparsifier.masks["fc1"]].abs().max() < 0.01
    assert model.bn1.weight[sparsifier.masks["fc1"]].abs().mean() > 0.5
    lost = surgery.remove_channels(model, x, sparsifier.masks, fold_constants=False).model
    assert float((small(x) - model(x)).detach().abs().max()) < float((lost(x) - model(x)).detach().abs().max())


# --------------------------------------------------------------------------- other layers


class Concat(nn.Module):
    """Dense connections, a depthwise multiplier, group normalisation and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.wide = nn.Conv2d(9, 18, 3, groups=9)
        self.mix, self.norm = nn.Conv2d(18, 8, 1), nn.GroupNorm(4, 8)
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = torch.cat([x, F.relu(self.a(x))], 1)
        x = torch.cat([x, F.relu(self.b(x))], 1)
        return self.head(F.relu(self.up(F.relu(self.norm(self.mix(self.wide(x)))))))


def test_concatenation_multiplier_group_norm_and_transposed():
    model, x = Concat().double().eval(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    graph = channel_graph(model, x)
    assert [(g.name, g.numel) for g in graph.groups] == [("a", 4), ("b", 3), ("mix", 4), ("up", 6)]
    masks = half_masks(graph)
    wanted = apply(model, graph, masks)(x)
    small = surgery.remove_channels(model, x, masks).model
    torch.testing.assert_close(small(x), wanted, rtol=0, atol=1e-10)
    inputs = 2 + int(masks["a"].sum()) + int(masks["b"].sum())
    assert (small.wide.groups, small.wide.in_channels, small.wide.out_channels) == (inputs, inputs, 2 * inputs)
    assert small.norm.num_groups == int(masks["mix"].sum())
    assert small.up.in_channels == 2 * small.norm.num_groups
    assert small.up.out_channels == small.head.in_channels == int(masks["up"].sum())


def test_prelu_and_one_dimension():
    layers = [nn.Conv1d(2, 6, 3, padding=1), nn.PReLU(6), nn.Conv1d(6, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    model, x = nn.Sequential(*layers, nn.Linear(4, 2)).double(), torch.randn(2, 2, 8, dtype=torch.float64)
    model[1].weight.data.uniform_(0.1, 0.9)
    graph = channel_graph(model, x)
    assert [g.name for g in graph.groups] == ["0", "2"]
    masks = half_masks(graph)
    wanted = silent(model, graph, masks)(x)
    result = surgery.remove_channels(model, x, masks)
    torch.testing.assert_close(result.model(x), wanted, rtol=0, atol=1e-12)
    assert result.model[1].num_parameters == int(masks["0"].sum())


def test_a_layer_called_twice_is_reported_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.c(self.a(x)) * self.c(self.b(x))

    model, x = Twice(), torch.randn(2, 3)
    assert [g.numel for g in channel_graph(model, x).groups] == [5]
    (fold,) = surgery.remove_channels(model, x, {"a": torch.arange(5) < 3}).folds
    assert (fold.layer, fold.into, fold.exact) == ("c", "nothing", False)
    assert "called 2 times" in fold.reason


def test_sizes_written_into_forward_are_found():
    class Rigid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 9, 2)

        def forward(self, x):
            return self.fc(F.relu(self.conv(x)).view(-1, 36))

    with pytest.raises(GossamerError, match="does not run, perhaps sizes"):
        surgery.remove_channels(Rigid(), torch.randn(2, 1, 5, 5), {"conv": torch.tensor([True, False, True, True])})


def test_hidden_couplings_are_found_on_the_example():
    """The module reads its own width: the trace cannot see it, the comparison does."""

    class Secret(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x)) * self.a.out_features

    with pytest.raises(GossamerError, match="changed the outputs of Secret"):
        surgery.remove_channels(Secret(), torch.randn(2, 3), {"a": torch.arange(8) < 5})


# --------------------------------------------------------------------------- narrow, permute, widen


@pytest.mark.parametrize("name", MODELS)
def test_permutation_keeps_the_function_and_has_an_inverse(name):
    model, example = prepared(name)
    graph = channel_graph(model, example)
    orders = {g.name: torch.randperm(g.numel).tolist() for g in graph.groups}
    result = surgery.permute_channels(model, example, orders)
    torch.testing.assert_close(result.model(example), model(example), rtol=0, atol=1e-10)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))
    inverse = {g: torch.tensor(order).argsort().tolist() for g, order in orders.items()}
    back = surgery.permute_channels(result.model, example, inverse).model
    assert all(torch.equal(v, back.state_dict()[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_widening_keeps_the_function(name):
    model, example = prepared(name)
    graph = channel_graph(model, example)
    widths = {g.name: g.numel + max(1, g.numel // 3) for g in graph.groups}
    result = surgery.widen(model, example, widths)
    torch.testing.assert_close(result.model(example), model(example), rtol=0, atol=1e-10)
    sizes = [accounting.sparsity(m, {}, "all").total for m in (model, result.model)]
    assert sizes[1] > 1.15 * sizes[0]
    assert {g.name: g.numel for g in channel_graph(result.model, example).groups} == widths


def test_widened_concatenations_keep_their_order():
    model, x = Concat().double().eval(), torch.randn(1, 2, 8, 8, dtype=torch.float64)
    wide = surgery.widen(model, x, {"a": 7, "b": 5, "mix": 6, "up": 9}).model
    torch.testing.assert_close(wide(x), model(x), rtol=0, atol=1e-10)
    assert (wide.wide.groups, wide.norm.num_groups) == (2 + 7 + 5, 6)


def test_narrowing_keeps_the_first_units():
    model, example = prepared("mlp")
    small = surgery.narrow(model, example, {"fc1": 4}, fold_constants=False).model
    assert torch.equal(small.fc1.weight, model.fc1.weight[:4])
    assert torch.equal(small.bn1.running_var, model.bn1.running_var[:4])
    assert torch.equal(small.fc2.weight, model.fc2.weight[:, :4])
    assert (small.fc1.out_features, small.bn1.num_features, small.fc2.in_features) == (4, 4, 4)


def test_in_place_surgery_keeps_parameter_objects():
    model, example = prepared("mlp")
    weight = model.fc1.weight
    result = surgery.narrow(model, example, {"fc1": 4}, inplace=True)
    assert result.model is model
    assert model.fc1.weight is weight
    assert weight.shape == (4, 12)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_training_goes_on_after_a_permutation(kind):
    """Permuted and trained is trained and permuted: the optimiser's buffers follow."""

    def trained(permute_at):
        torch.manual_seed(0)
        model = build("mlp", shape=(6,), hidden=(5,), classes=3).double()
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(model.parameters(), 0.01, **options)
        for step in range(5):
            if step == permute_at:
                x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
                order = {"fc1": [3, 1, 4, 0, 2]}
                surgery.permute_channels(model, x, order, inplace=True, optimizer=optimizer)
            inputs = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        return model.eval()

    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(trained(3)(x), trained(None)(x), rtol=0, atol=1e-12)


def test_training_goes_on_after_a_removal():
    model, example = prepared("mobilenet-digits")
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for masks in (None, half_masks(channel_graph(model, example))):
        if masks:
            surgery.remove_channels(model, example, masks, inplace=True, optimizer=optimizer)
        optimizer.zero_grad()
        model.train()(example).square().mean().backward()
        optimizer.step()
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    with pytest.raises(ConfigError, match="in place only"):
        surgery.remove_channels(model, example, {}, optimizer=optimizer)


@given(data=st.data())
def test_removal_equals_entry_masks_for_any_masks(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 3, dtype=torch.float64)
    graph = channel_graph(model, x)
    flags = st.lists(st.booleans(), min_size=5, max_size=5).filter(lambda bits: any(bits[:4]))
    masks = {g.name: torch.tensor(data.draw(flags))[: g.numel] for g in graph.groups}
    wanted = apply(model, graph, masks)(x)
    small = surgery.remove_channels(model, x, masks)
    torch.testing.assert_close(small.model(x), wanted, rtol=0, atol=1e-12)
    assert small.plan["units"] == {n: m.nonzero().flatten().tolist() for n, m in masks.items()}


# --------------------------------------------------------------------------- bad input


def test_bad_masks():
    model, example = prepared("mlp")
    for masks, error, message in (
        ({"fc1": torch.zeros(9, dtype=torch.bool)}, MaskError, "all 9 channels of fc1"),
        ({"fc1": torch.ones(8, dtype=torch.bool)}, ShapeError, r"mask of fc1 has shape \(8,\)"),
        ({"head": torch.ones(10, dtype=torch.bool)}, ConfigError, "head cannot be changed: it is an output"),
        ({"fc9": torch.ones(9, dtype=torch.bool)}, ConfigError, r"no channel group 'fc9'; there are \['fc1', 'fc2'\]"),
    ):
        with pytest.raises(error, match=message):
            surgery.remove_channels(model, example, masks)


def test_bad_orders_and_widths():
    model, example = prepared("mlp")
    with pytest.raises(ConfigError, match="no permutation of its 9"):
        surgery.permute_channels(model, example, {"fc1": [0] * 9})
    with pytest.raises(ConfigError, match="cannot be narrowed to 0"):
        surgery.narrow(model, example, {"fc1": 0})
    with pytest.raises(ConfigError, match="cannot be widened to 8"):
        surgery.widen(model, example, {"fc1": 8})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, this is 1"),
        ({"tensors": {"fc9.weight": [1, 2]}}, "fc9"),
        ({"tensors": {"fc1.weight": [1, 2, 3]}}, r"fc1\.weight the shape \[1, 2, 3\]"),
        ({"tensors": {"fc1.weight": [-1, 12]}}, "fc1.weight the shape"),
        ({"attributes": {"fc1": {"forward": 3}}}, r"fc1\.forward"),
        ({"attributes": {"fc1": {"out_features": 0}}}, r"fc1\.out_features = 0"),
        ({"biases": None}, "does not belong"),
    ],
)
def test_damaged_plans(change, message):
    model, example = prepared("mlp")
    plan = surgery.narrow(model, example, {"fc1": 4}).plan | change
    with pytest.raises(CheckpointError, match=message):
        surgery.apply_shrink_plan(make("mlp"), plan)


# --------------------------------------------------------------------------- export


def masked_convnet(two_four=False):
    model = build("convnet", channels=(8, 8))
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.shape[1] % 4 == 0}
    masks = {}
    for name, p in weights.items():
        mask = torch.rand(p.shape) < 0.4
        if two_four:
            mask = (torch.arange(p.shape[1]) % 4 < 2).view(1, -1, *[1] * (p.ndim - 2)).expand(p.shape).clone()
        masks[name] = mask
    return model, masks


def test_dense_export_has_exact_zeros():
    model, masks = masked_convnet()
    state = surgery.export_dense(model, masks)
    assert list(state) == list(model.state_dict())
    for name, mask in masks.items():
        assert torch.equal(state[name], model.get_parameter(name).detach() * mask)
    state["head.fc.weight"].fill_(9)
    assert not (model.head.fc.weight == 9).any()


@pytest.mark.parametrize("two_four", [False, True])
def test_sparse_exports_come_back(two_four):
    model, masks = masked_convnet(two_four)
    stored = (surgery.export_two_four if two_four else surgery.export_csr)(model, masks)
    assert stored["head.fc.weight.values"].numel() == int(masks["head.fc.weight"].sum())
    dense = surgery.densify(stored)
    wanted = surgery.export_dense(model, masks)
    assert dense.keys() == wanted.keys()
    assert all(torch.equal(dense[name], wanted[name]) for name in wanted)


def test_two_four_takes_the_bytes_that_accounting_says():
    model = nn.Linear(16, 8, bias=False)
    masks = {"weight": (torch.arange(16) % 4 > 1).expand(8, 16)}
    stored = surgery.export_two_four(model, masks)
    size = sum(t.numel() * t.element_size() for n, t in stored.items() if not n.endswith("shape"))
    assert size == accounting.memory(model, masks, "2:4").total


def test_bad_exports():
    model, masks = masked_convnet()
    with pytest.raises(MaskError, match=r"blocks\.1\.conv\.weight cannot be stored as 2:4"):
        surgery.export_two_four(model, masks)
    stored = surgery.export_csr(model, masks)
    del stored["head.fc.weight.columns"]
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight is damaged"):
        surgery.densify(stored)
    Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipes.ste(select=_convolutions()), 5)
    with pytest.raises(ConfigError, match="finalize"):
        surgery.export_dense(model, {})


def _convolutions():
    from gossamer.sparsify import Select

    return Select(only=("blocks.1.*",))


def test_masks_become_permanent():
    model, _ = masked_convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, recipes.ste(select=_convolutions()), 5)
    x = torch.randn(2, 1, 12, 12)
    wanted = model.eval()(x)
    surgery.make_permanent(model, sparsifier.entry_masks)
    assert torch.equal(model(x), wanted)
    assert "blocks.1.conv.weight" in model.state_dict()
    assert accounting.disagreements(model, sparsifier.entry_masks) == []
