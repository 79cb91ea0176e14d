"""Iso-FLOP transforms: exact arithmetic, equal cost of whole networks, and what the layers compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gossamer.architectures.isoflop import (
    FAMILIES,
    Doped,
    Factorized,
    Parallel,
    base_scaling,
    branches,
    doped_rank,
    factorized_rank,
    iso_flop,
    iso_recipe,
    wide_width,
)
from gossamer.architectures.isoflop.memory import activations
from gossamer.architectures.isoflop.transform import same_cost
from gossamer.errors import ConfigError
from gossamer.models import Llama, LlamaConfig, build
from gossamer.sparsify import Recipe, Sparsifier
from gossamer.sparsify.patterns import NM

PICTURE = torch.zeros(1, 3, 32, 32)


def test_scalings_are_the_published_ones():
    assert [base_scaling(s) for s in (0, 0.5, 0.75, 0.9, 0.99)] == [1, 2, 4, 10, 100]
    assert [wide_width(64, s) for s in (0, 0.5, 0.75, 0.9)] == [64, 90, 128, 202]
    assert [branches(s) for s in (0.5, 0.75, 0.9)] == [2, 4, 10]


@settings(deadline=None)
@given(
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    taps=st.sampled_from([1, 9, 25]),
    sparsity=st.sampled_from([0.0, 0.5, 0.75, 0.9]),
)
def test_ranks_are_the_extreme_whole_numbers(inputs, outputs, taps, sparsity):
    budget, unit = taps * inputs * outputs, taps * inputs + outputs
    found = factorized_rank(inputs, outputs, sparsity, taps)
    assert found == next(d for d in range(10**5) if (1 - sparsity) * d * unit >= budget - 1e-6 * budget)
    fitting = [d for d in range(inputs + outputs) if d * unit <= sparsity * budget + 1e-6]
    if fitting[-1] == 0:
        with pytest.raises(ConfigError, match="too small"):
            doped_rank(inputs, outputs, sparsity, taps)
    else:
        assert doped_rank(inputs, outputs, sparsity, taps) == fitting[-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_a_perceptron_costs_the_same_to_the_weight(family, sparsity):
    model = build("mlp", shape=(1, 8, 8), hidden=(60, 60))
    iso = iso_flop(model, family, sparsity, torch.zeros(2, 1, 8, 8), first_dense=False, last_dense=False)
    dense = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    whole = {n: p.numel() for n, p in iso.model.named_parameters() if p.ndim > 1}
    assert sum(iso.counts.get(name, numel) for name, numel in whole.items()) == dense
    assert iso.ratio == pytest.approx(1.0, abs=1e-12)
    assert sum(whole.values()) > dense or family == "doped"


def networks():
    language = Llama(LlamaConfig(vocabulary=32, width=32, hidden=64, depth=2, heads=2, kv_heads=2))
    return {
        "resnet-18": (build("resnet-18", classes=10, shape=(3, 32, 32)), PICTURE),
        "resnet-20": (build("resnet-20"), PICTURE),
        "vit-tiny": (build("vit-tiny"), PICTURE),
        "llama": (language, torch.zeros(1, 8, dtype=torch.long)),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["resnet-18", "resnet-20", "vit-tiny", "llama"])
def test_whole_networks_cost_the_same(name, family):
    model, example = networks()[name]
    iso = iso_flop(model.eval(), family, 0.75, example)
    assert same_cost(iso)
    assert iso.ratio == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        assert iso.model.eval()(example).shape == model(example).shape
    # the accounting floor against torch's counter, on both dense twins
    for network, counted in ((model, iso.before), (iso.model, iso.after)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            network(example)
        products = sum(v for k, v in counter.get_flop_counts()["Global"].items() if "bmm" in str(k))
        assert counted.dense == pytest.approx(counter.get_total_flops() - products, rel=1e-6)


def test_width_runs_through_residual_streams_norms_and_depthwise_layers():
    wide = iso_flop(build("resnet-18", classes=10, shape=(3, 32, 32)), "wide", 0.75, PICTURE).model
    assert wide.conv1.out_channels == 128
    assert wide.bn1.num_features == 128
    assert wide.fc.in_features == 1024
    mobile = iso_flop(build("mobilenet-digits"), "wide", 0.75, torch.zeros(1, 1, 16, 16)).model
    grouped = [m for m in mobile.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    narrow = [m for m in build("mobilenet-digits").modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.groups for m in grouped] == [2 * m.groups for m in narrow]


def test_without_sparsity_wide_and_parallel_are_the_dense_network():
    model = build("mlp", shape=(1, 8, 8), hidden=(6, 6)).eval()
    x = torch.randn(4, 1, 8, 8)
    wide = iso_flop(model, "wide", 0.0, x, first_dense=False).model.eval()
    torch.testing.assert_close(wide(x), model(x))
    iso = iso_flop(model, "parallel", 0.0, x, first_dense=False, last_dense=False)
    assert iso.densities == dict.fromkeys(iso.densities, 1.0)
    state = model.state_dict()
    renamed = {
        f"fc{i}.{new}": state[old]
        for i in (1, 2)
        for new, old in [("branches.0.weight", f"fc{i}.weight")]
        + [
            (f"norms.0.{k}", f"bn{i}.{k}")
            for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]
    }
    renamed |= {"head.branches.0.weight": state["head.weight"], "head.bias": state["head.bias"]}
    iso.model.load_state_dict(renamed)
    torch.testing.assert_close(iso.model.eval()(x), model(x))


@pytest.mark.parametrize("layer", [nn.Linear(12, 10), nn.Conv2d(6, 8, 3, stride=2, padding=1)], ids=("linear", "conv"))
def test_layers_fold_to_one_weight(layer):
    x = torch.randn(3, 12) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 9, 9)
    doped = Doped(layer, 0.75)
    factors = Factorized(layer, 0.5, between="linear")
    for made in (doped, factors):
        twin = nn.Linear(12, 10) if isinstance(layer, nn.Linear) else nn.Conv2d(6, 8, 3, 2, 1)
        with torch.no_grad():
            twin.weight.copy_(made.folded())
            twin.bias.copy_(made.v.bias)
        torch.testing.assert_close(made(x), twin(x), rtol=1e-4, atol=1e-5)
    parts = Parallel(layer, 0.5, norm=False)
    summed = sum(branch.weight for branch in parts.branches)
    with torch.no_grad():
        twin.weight.copy_(summed)
        twin.bias.zero_()
    torch.testing.assert_close(parts(x), twin(x), rtol=1e-4, atol=1e-5)
    rectified = Parallel(layer, 0.5, norm=False, relu=True)
    wanted = sum(branch(x).relu() for branch in rectified.branches)
    torch.testing.assert_close(rectified(x), wanted)


@pytest.mark.parametrize("method", ["rigl", "set", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_keep_exactly_the_counts(family, method):
    torch.manual_seed(0)
    model = build("mlp", shape=(1, 8, 8), hidden=(20, 20))
    iso = iso_flop(model, family, 0.75, torch.zeros(2, 1, 8, 8), first_dense=False, last_dense=False)
    options = {} if method == "static" else {"every": 5}
    optimizer = torch.optim.SGD(iso.model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = Sparsifier(iso.model, optimizer, iso_recipe(iso, method, **options), 20)
    for _ in range(20):
        x = torch.randn(16, 1, 8, 8)
        nn.functional.cross_entropy(iso.model(x), (x.flatten(1)[:, 0] > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == iso.counts
    sparsifier.finalize()
    weights = dict(iso.model.named_parameters())
    # a weight grown into a dead unit may still be zero, so the count is a bound
    assert all(0 < int(weights[name].count_nonzero()) <= count for name, count in iso.counts.items())
    assert (sum(row["flips"] for row in sparsifier.history) > 0) == (method != "static")


def test_parallel_branches_may_be_one_of_four():
    model = build("mlp", shape=(1, 8, 8), hidden=(20, 20))
    example = torch.zeros(2, 1, 8, 8)
    iso = iso_flop(model, "parallel", 0.75, example, last_dense=True)
    recipe = iso_recipe(iso, "static", pattern=NM(1, 4))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    sparsifier = Sparsifier(iso.model, torch.optim.SGD(iso.model.parameters(), lr=0.05), recipe, 2)
    for name, mask in sparsifier.masks.items():
        NM(1, 4).check(mask)
        assert int(mask.sum()) == iso.counts[name]
    with pytest.raises(ConfigError, match="do not move: take 'static'"):
        iso_recipe(iso, "rigl", pattern=NM(1, 4))
    with pytest.raises(ConfigError, match=r"keeps 160 weights of fc2.*, but equal FLOPs allow 100"):
        iso_recipe(iso, "static", pattern=NM(2, 5))


def test_the_table_says_what_equal_flops_cost():
    iso = iso_flop(build("resnet-20"), "parallel", 0.75, PICTURE)
    dense, sparse = iso.table()
    assert sparse["mega FLOPs"] == pytest.approx(dense["mega FLOPs"], rel=1e-3)
    assert sparse["parameters"] == sum(p.numel() for p in iso.model.parameters())
    assert dense["parameters"] is not None
    assert sparse["activations"] > 3 * dense["activations"]  # four branches


def test_activations_are_counted_by_hand_and_the_mode_stays():
    model = build("mlp", shape=(1, 8, 8), hidden=(6, 5)).train()
    assert activations(model, torch.zeros(3, 1, 8, 8)) == 3 * (6 + 5) + 10  # linear, norm, ReLU twice; the head
    assert model.training
    assert int(model.bn1.num_batches_tracked) == 0
    wide = iso_flop(model, "wide", 0.75, torch.zeros(3, 1, 8, 8), first_dense=False, last_dense=False)
    assert wide.activations == (43, 3 * (12 + 10) + 10)


@pytest.mark.parametrize(
    ("family", "sparsity", "options", "text"),
    [
        ("wider", 0.5, {}, r"unknown iso-FLOP family 'wider'.*wide"),
        ("wide", 1.0, {}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ("parallel", 0.7, {}, "choose 0.6667 .3. or 0.75 .4."),
        ("doped", 0.1, {}, "too small at sparsity 0.1"),
        ("factorized", 0.5, {"between": "relu"}, "between must be one of"),
        ("wide", 0.99, {}, "more than the budget"),
    ],
)
def test_bad_input_is_named(family, sparsity, options, text):
    with pytest.raises(ConfigError, match=text):
        iso_flop(build("mlp", shape=(1, 8, 8), hidden=(6, 6)), family, sparsity, torch.zeros(1, 1, 8, 8), **options)


def test_grouped_convolutions_and_unknown_methods_are_refused():
    with pytest.raises(ConfigError, match="grouped convolution"):
        iso_flop(build("mobilenet-digits"), "doped", 0.75, torch.zeros(1, 1, 16, 16))
    iso = iso_flop(build("mlp", shape=(1, 8, 8)), "wide", 0.5, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"unknown method 'rig'.*rigl"):
        iso_recipe(iso, "rig")
