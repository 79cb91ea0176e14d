"""1x1 convolutions that train their non-zeros, under the ordinary Sparsifier."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.engine.sparse_linear import SPARSE, SparseConv1x1, sparsify_linears
from gossamer.errors import ShapeError
from gossamer.kernels import native
from gossamer.recipes.dynamic import rigl, set_
from gossamer.recipes.static import random
from gossamer.sparsify.allocation import Uniform
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

pytestmark = pytest.mark.skipif(native.extension() is None, reason="sparse layers need the compiled kernels")

RECIPES = {
    "static": lambda: random(0.8, allocation="uniform"),
    "set": lambda: set_(0.8, every=7, allocation=Uniform()),
    "rigl": lambda: rigl(0.8, every=7, allocation=Uniform()),
}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
        nn.Conv2d(48, 32, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


def start(recipe: Recipe, optimiser, sparse: bool):
    model = network()
    optimizer = optimiser(model.parameters())
    recipe = Recipe(recipe.name, select=Select(only=("2.weight", "5.weight")), updates=recipe.updates)
    sparsifier = Sparsifier(model, optimizer, recipe, 40)
    if sparse:
        assert sparsify_linears(sparsifier) == {"2.weight": SPARSE, "5.weight": SPARSE}
        assert isinstance(model[2], SparseConv1x1)
    return model, optimizer, sparsifier


def train(model, optimizer, steps: int, side: int = 7) -> list[float]:
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step % 3)
        labels = torch.arange(6) % 5
        x = torch.randn(6, 3, side, side, generator=generator) + labels.view(-1, 1, 1, 1)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_is_that_of_masked_dense_training(recipe, fused):
    def optimiser(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=fused)

    runs = {}
    for sparse in (False, True):
        model, optimizer, sparsifier = start(RECIPES[recipe](), optimiser, sparse)
        losses = train(model, optimizer, 40)
        momentum = {
            name: optimizer.state[p]["momentum_buffer"]
            for name, p in sparsifier.finalize().named_parameters()
            if name in ("2.weight", "5.weight")
        }
        runs[sparse] = losses, sparsifier.masks, model.state_dict(), momentum
    assert runs[True][0] == pytest.approx(runs[False][0], abs=1e-4)
    assert runs[True][0][-1] < 0.8 * runs[True][0][0]
    for name, mask in runs[False][1].items():
        assert torch.equal(runs[True][1][name], mask)
        assert not runs[True][2][name][~mask].any()
        torch.testing.assert_close(runs[True][3][name][mask], runs[False][3][name][mask], rtol=1e-3, atol=1e-4)
    for name, tensor in runs[False][2].items():
        assert runs[True][2][name].shape == tensor.shape
        torch.testing.assert_close(runs[True][2][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("images", "side"), [(1, 1), (2, 3), (5, 8), (0, 4)])
def test_output_and_gradients_are_those_of_the_convolution(images, side):
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 33, 1)
    mask = torch.rand(33, 20, 1, 1) < 0.2
    layer.weight.data *= mask
    x = torch.randn(side, images, side, 20).permute(1, 3, 0, 2)  # of an odd order in memory
    results = []
    for module in (layer, SparseConv1x1(layer, mask)):
        given = x.clone().requires_grad_()
        y = module(given)
        y.square().sum().backward()
        results.append((y, given.grad))
    assert results[1][0].is_contiguous()
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_fused_relu_is_part_of_the_layer():
    model, _, sparsifier = start(RECIPES["static"](), lambda p: torch.optim.SGD(p, lr=0.1), True)
    assert model[5].relu
    assert isinstance(model[6], nn.Identity)
    sparsifier.finalize()
    assert type(model[5]) is nn.Conv2d
    assert type(model[6]) is nn.ReLU


def test_what_stays_masked_dense():
    def why(layer, sparsity=0.8):
        model = nn.Sequential(layer)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return sparsify_linears(Sparsifier(model, optimizer, random(sparsity, allocation="uniform"), 5))["0.weight"]

    assert why(nn.Conv2d(8, 8, 1)) == SPARSE
    for other in (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, groups=2)):
        assert "1x1 nn.Conv2d of stride 1" in why(other)
    assert why(nn.Conv2d(8, 8, 1), 0.6) == "denser than 0.3"


def test_other_shapes_are_named():
    layer = SparseConv1x1(nn.Conv2d(4, 4, 1), torch.ones(4, 4, 1, 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\(images, channels, height, width\)"):
        layer(torch.ones(2, 4))
    with pytest.raises(ShapeError, match="4 inputs"):
        layer(torch.ones(2, 5, 3, 3))
