"""The published recipes of Fast Sparse ConvNets and SparseByteNN: which layers, which blocks, which schedule."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.errors import ConfigError
from gossamer.models.mobilenet import mobilenet_v2
from gossamer.models.zoo import build
from gossamer.recipes.convnets import PUBLISHED, fast_sparse, fast_sparse_plan, pointwise, sparsebyte
from gossamer.sparsify.patterns import Block, Unstructured
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier


def blocks(plan):
    return {int(name.split(".")[1]) + 1 for name, pattern in plan.patterns.items() if isinstance(pattern, Block)}


def test_mobilenet_v1_has_blocks_of_4_from_layer_12_on():
    plan = fast_sparse_plan(build("mobilenet-v1"), "mobilenet-v1")
    assert len(plan.patterns) == 13
    assert blocks(plan) == {12, 13}
    assert plan.patterns["blocks.12.pointwise.conv.weight"] == Block(4, 1)
    assert plan.dense["stem.conv.weight"] == "it is a full convolution"
    assert plan.dense["head.fc.weight"] == "it is a classifier"
    assert sum("depthwise" in reason for reason in plan.dense.values()) == 13


def test_mobilenet_v2_has_blocks_of_2_in_residuals_11_to_16():
    plan = fast_sparse_plan(build("mobilenet-v2"), "mobilenet-v2")
    assert len(plan.patterns) == 34  # 16 expansions, 17 projections, the last layer
    assert blocks(plan) == {11, 12, 13, 14, 15, 16}
    assert plan.patterns["blocks.10.body.expand.conv.weight"] == Block(2, 1)
    assert plan.patterns["blocks.16.body.expand.conv.weight"] == Unstructured()


def test_efficientnet_has_a_sparse_classifier_and_dense_squeezing():
    model = build("efficientnet-b0")
    plan = fast_sparse_plan(model, "efficientnet-b0")
    assert not blocks(plan)
    assert plan.patterns["head.fc.weight"] == Unstructured()
    assert "blocks.1.body.squeeze.reduce" not in " ".join(pointwise(model))
    assert plan.dense["blocks.1.body.squeeze.reduce.weight"].startswith("it squeezes")


def test_the_sparsity_is_the_authors_unless_given():
    assert {name: entry.sparsity for name, entry in PUBLISHED.items()} == {
        "mobilenet-v1": 0.9,
        "mobilenet-v2": 0.85,
        "efficientnet-b0": 0.8,
        "mobilenet-digits": 0.8,
    }
    model = build("mobilenet-digits")
    (update,) = fast_sparse(model, "mobilenet-digits").updates
    assert (update.density(0.0), update.density(1.0)) == (1.0, pytest.approx(0.2))
    assert (update.when.start, update.when.stop) == (0.15, 0.7)
    assert fast_sparse(model, sparsity=0.5).updates[0].density(1.0) == 0.5


def test_blocks_by_the_cache():
    model = build("mobilenet-v1")
    plan = fast_sparse_plan(model, slab_bytes=49152)
    wide = {name for name, module in pointwise(model).items() if module.in_channels * 128 > 49152}
    assert {name for name, pattern in plan.patterns.items() if isinstance(pattern, Block)} == wide
    assert not blocks(fast_sparse_plan(model))


def test_recipes_are_values():
    for recipe in (fast_sparse(build("mobilenet-v2"), "mobilenet-v2"), sparsebyte(build("resnet-20"), 0.3, 8)):
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_whole_kernels_of_full_convolutions_go_together():
    recipe = sparsebyte(build("resnet-20"), 0.5, 4)
    assert dict(recipe.layers)["layer1.0.conv1.weight"] == Block(4, 9)
    odd = sparsebyte(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 1)), 0.5, 4)
    assert dict(odd.layers) == {"1.weight": Block(2, 9), "2.weight": Block(4, 1)}


@pytest.mark.parametrize("make", [lambda m: fast_sparse(m, None, 0.8), lambda m: sparsebyte(m, 0.8, 4)])
def test_training_ends_at_the_sparsity_in_every_layer(make):
    torch.manual_seed(0)
    model = build("mobilenet-digits")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    steps = 40
    recipe = make(model)
    sparsifier = Sparsifier(model, optimizer, recipe, steps)
    x, y = torch.randn(8, 1, 16, 16), torch.arange(8)
    densities = []
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        densities.append(sum(int(m.sum()) for m in sparsifier.masks.values()))
    assert densities == sorted(densities, reverse=True)
    sparsifier.finalize()
    for name, pattern in recipe.layers:
        weight = model.get_parameter(name)
        cell = pattern.cell(tuple(weight.shape))
        assert abs(int(weight.count_nonzero()) - 0.2 * weight.numel()) <= cell
    assert model.stem.conv.weight.count_nonzero() == model.stem.conv.weight.numel()


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="unknown network"):
        fast_sparse_plan(build("mobilenet-v1"), "mobilenet-v3")
    with pytest.raises(ConfigError, match="no 1x1 convolution"):
        fast_sparse_plan(nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="fraction of zeros"):
        fast_sparse(mobilenet_v2(), "mobilenet-v2", 1.0)
    with pytest.raises(ConfigError, match="rows, got 5"):
        sparsebyte(build("resnet-20"), 0.3, 5)
