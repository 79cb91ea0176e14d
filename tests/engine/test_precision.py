"""Plans that may round to bfloat16."""

import numpy as np
import pytest
import torch
from torch import nn

import gossamer
from gossamer.engine import packing, tune
from gossamer.engine.packing import BF16, BITMAP_BF16
from gossamer.engine.runtime import Plan
from gossamer.errors import ConfigError
from gossamer.kernels import native
from gossamer.models.zoo import build

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")
NEEDS_BF16 = pytest.mark.skipif(not packing.has_bf16(), reason="needs instructions for bfloat16")


@pytest.fixture
def rounded_is_faster(monkeypatch):
    """Layers that may round do, and the plan beats torch."""
    measured = tune.measure

    def measure(*arguments):
        return {
            key: {kind: t * (0.01 if kind in (*BF16, BITMAP_BF16) else 1.0) for kind, t in times.items()}
            for key, times in measured(*arguments).items()
        }

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "settle", lambda runs, threads: {n: float(n not in ("native", "plan")) for n in runs})


@NEEDS_BF16
@pytest.mark.usefixtures("rounded_is_faster")
def test_layers_round_where_that_is_faster(digits, tmp_path):
    x = torch.randn(3, 1, 16, 16)
    plan = gossamer.compile(digits, x[:1], precision="bfloat16")
    runs = {layer.layer: layer.runs for layer in plan.report().layers}
    assert runs["blocks.4.pointwise.conv"] in BF16
    assert runs["stem.conv"] == "bf16 dense"
    assert runs["blocks.4.depthwise.conv"] not in BF16
    with torch.no_grad():
        wanted = digits(x)
    difference = float((plan(x) - wanted).abs().max() / wanted.abs().max())
    assert 1e-5 < difference < 3e-2
    assert 1e-5 < plan.report().difference < 3e-2
    plan.save(tmp_path / "rounded.plan")
    assert np.array_equal(Plan.load(tmp_path / "rounded.plan")(x.numpy()), plan(x).numpy())


@NEEDS_BF16
@pytest.mark.usefixtures("rounded_is_faster")
@pytest.mark.parametrize(("name", "shape"), [("resnet-20", (3, 32, 32)), ("mlp", (1, 8, 8)), ("vit-tiny", (3, 32, 32))])
def test_other_networks(pruned, name, shape):
    torch.manual_seed(1)
    model = pruned(build(name, shape=shape))
    plan = gossamer.compile(model, torch.randn(1, *shape), precision="bfloat16")
    assert any(layer.runs in (*BF16, BITMAP_BF16) for layer in plan.report().layers)
    x = torch.randn(12, *shape)
    with torch.no_grad():
        wanted = model(x)
    assert float((plan(x) - wanted).abs().max() / wanted.abs().max()) < 5e-2


def test_float32_plans_never_round(digits):
    report = gossamer.compile(digits, torch.randn(1, 1, 16, 16)).report()
    assert not any("bf16" in layer.runs for layer in report.layers)
    assert report.difference < 1e-4


def test_a_processor_without_the_instructions_says_so(digits):
    with native.using("portable"):
        report = gossamer.compile(digits, torch.randn(1, 1, 16, 16), precision="bfloat16").report()
    assert any("no instructions for bfloat16" in line for line in report.breaks)
    assert not any("bf16" in layer.runs for layer in report.layers)


@NEEDS_BF16
def test_modules_may_round(pruned, monkeypatch):
    monkeypatch.setattr(
        tune, "race", lambda runs, threads, least=5: {n: 0.1 if n == "bf16 block 4" else 1.0 for n in runs}
    )
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64)), 0.9)
    x = torch.randn(32, 128)
    with torch.no_grad():
        wanted = model(x)
        gossamer.compile(model, x, mode="modules", precision="bfloat16")
        assert [layer.runs for layer in model.gossamer_report.layers] == ["bf16 block 4"] * 2
        assert 1e-5 < float((model(x) - wanted).abs().max() / wanted.abs().max()) < 3e-2


def test_an_unknown_precision_is_named(digits):
    with pytest.raises(ConfigError, match="unknown precision 'bf16'"):
        gossamer.compile(digits, torch.randn(1, 1, 16, 16), precision="bf16")
