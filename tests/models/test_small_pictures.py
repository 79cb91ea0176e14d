"""Residual networks with the stem for 32 pixels: published sizes, resolution kept."""

import pytest
import torch

from gossamer.models import build
from gossamer.models.small_pictures import resnet18, resnet50
from gossamer.sparsify.accounting import flops


@pytest.mark.parametrize(("make", "count"), [(resnet18, 11_173_962), (resnet50, 23_520_842)])
def test_sizes_are_the_published_ones(make, count):
    model = make()
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_work_is_the_published_one_and_the_stem_keeps_the_resolution():
    model = build("gossamer.models.small_pictures:resnet18", shape=(3, 32, 32), classes=100)
    counted = flops(model, torch.zeros(1, 3, 32, 32), {})
    assert counted.macs == pytest.approx(0.556e9, rel=0.01)
    assert counted.layers[0].dense == 2 * 3 * 64 * 9 * 32 * 32
