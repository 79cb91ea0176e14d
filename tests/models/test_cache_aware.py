"""MobileNetV2 shaped for a cache."""

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError
from gossamer.models.cache_aware import TILE, cache_aware_stages, mobilenet_v2_cache_aware
from gossamer.models.mobilenet import mobilenet_v2
from gossamer.recipes.convnets import pointwise


def weights(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in pointwise(model).values())


def test_a_large_cache_leaves_the_network_as_it_is():
    own, original = mobilenet_v2_cache_aware(cache_bytes=1 << 20), mobilenet_v2()
    assert [tuple(p.shape) for p in own.parameters()] == [tuple(p.shape) for p in original.parameters()]


@pytest.mark.parametrize("width", [1.0, 1.4])
def test_the_slabs_fit_and_the_weights_stay(width):
    cache = 65536
    model = mobilenet_v2_cache_aware(width=width, cache_bytes=cache)
    for name, module in pointwise(model).items():
        expansion = module.in_channels // max(1, module.out_channels)
        assert module.in_channels * TILE * 4 <= cache or expansion <= 2, name
    assert weights(model) <= 1.06 * weights(mobilenet_v2(width=width))
    assert len(model.blocks) >= len(mobilenet_v2(width=width).blocks)


def test_it_runs():
    model = mobilenet_v2_cache_aware(shape=(3, 32, 32), classes=5, width=0.5, cache_bytes=8192).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert min(stage[0] for stage in cache_aware_stages(0.5, 8192)[1:]) >= 2


def test_a_cache_without_room_is_refused():
    with pytest.raises(ConfigError, match="holds no tile"):
        mobilenet_v2_cache_aware(cache_bytes=1024)
