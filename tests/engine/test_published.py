"""The two published systems on the engine: what they prune runs as it is in torch, and what cannot run is reported."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer
from gossamer.kernels import native
from gossamer.kernels.conv import conv2d
from gossamer.kernels.pack import pack_block
from gossamer.models.cache_aware import mobilenet_v2_cache_aware
from gossamer.models.zoo import build
from gossamer.recipes.convnets import fast_sparse_plan
from gossamer.sparsify.rearrange import rearrange
from gossamer.sparsify.strips import OutBlock, layer_patterns, prune_strips_

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


@pytest.mark.parametrize("height", [4, 8, 16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_whole_kernels_in_blocks_are_what_torch_computes(height, stride, padding, dilation):
    source = torch.Generator().manual_seed(height)
    weight = torch.randn(19, 7, 3, 3, generator=source)  # a short last strip
    mask = OutBlock(height).mask(weight, 0.6)
    weight *= mask
    packed = pack_block(weight, height)
    assert packed.entries == int(mask.any(3).any(2)[::height].sum()) * 9
    x = torch.randn(2, 7, 9, 8, generator=source)
    found = conv2d(packed, x, kernel=3, stride=stride, padding=padding, dilation=dilation)
    wanted = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation)
    assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max()) * 7**0.5


def test_a_rearranged_and_pruned_network_compiles_to_the_same_outputs(pruned):
    torch.manual_seed(0)
    model = pruned(build("mobilenet-digits"), 0.0)
    x = torch.randn(3, 1, 16, 16)
    patterns = layer_patterns(model, 8).patterns
    moved = rearrange(model, x, patterns, 0.5).apply(model)
    masks = prune_strips_(moved, patterns, 0.5)
    plan = gossamer.compile(moved, x)
    with torch.no_grad():
        wanted = moved(x)
    assert torch.equal(plan(x).argmax(1), wanted.argmax(1))
    assert float((plan(x) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    densities = {layer.layer: layer.density for layer in plan.report().layers}
    for name, mask in masks.items():
        assert densities[name.removesuffix(".weight")] == pytest.approx(float(mask.float().mean()))


@pytest.mark.parametrize("network", ["mobilenet-v2", "cache-aware", "efficientnet-b0"])
def test_mobile_networks_compute_what_torch_computes(network, pruned):
    torch.manual_seed(0)
    options = {"shape": (3, 32, 32), "classes": 10}
    model = mobilenet_v2_cache_aware(**options) if network == "cache-aware" else build(network, **options)
    plan = fast_sparse_plan(model, "efficientnet-b0" if network == "efficientnet-b0" else "mobilenet-v2")
    for name, pattern in plan.patterns.items():
        weight = model.get_parameter(name).data
        cell = pattern.cell(tuple(weight.shape))
        weight *= pattern.project(weight.abs(), round(0.2 * weight.numel() / cell) * cell)
    x = torch.randn(1, 3, 32, 32)
    compiled = gossamer.compile(model.eval(), x)
    with torch.no_grad():
        wanted = model(x)
    assert float((compiled(x) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert not any("silu" in reason for reason in compiled.report().breaks)  # it has a kernel


def test_normalisation_that_cannot_be_folded_is_reported():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Conv2d(8, 16, 1))
    x = torch.randn(1, 3, 8, 8)
    plan = gossamer.compile(layers.eval(), x)
    assert any("own statistics" in reason for reason in plan.report().breaks)
    with torch.no_grad():
        assert torch.allclose(plan(x), layers(x), atol=1e-5)


def test_weights_that_are_not_finite_are_reported():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1)).eval()
    layers[2].weight.data[0, 0] = torch.nan
    report = gossamer.compile(layers, torch.randn(1, 3, 8, 8)).report()
    assert any("2: a weight is not float32, or not finite" in reason for reason in report.breaks)


def test_sparsity_below_the_break_even_runs_dense_and_says_so(pruned):
    torch.manual_seed(0)
    model = pruned(build("mobilenet-digits"), 0.02)
    report = gossamer.compile(model, torch.randn(1, 1, 16, 16)).report()
    dense = [layer for layer in report.layers if layer.runs == "dense" and (layer.density or 1) < 1]
    assert dense
    assert all("do not pay at this size" in layer.why or layer.why == "no sparse candidate" for layer in dense)
