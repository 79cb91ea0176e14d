"""ONNX files compute what torch computes."""

import sys

import pytest
import torch
from torch import nn

from gossamer.engine import onnx
from gossamer.errors import ConfigError, MissingExtra
from gossamer.models.zoo import build

needs_runtime = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(p) is None for p in ("onnx", "onnxruntime")),
    reason="needs the extra export",
)


@needs_runtime
@pytest.mark.parametrize(
    ("name", "shape"), [("mobilenet-digits", (1, 16, 16)), ("resnet-20", (3, 32, 32)), ("mlp", (1, 8, 8))]
)
def test_outputs_and_the_printed_ratio(pruned, tmp_path, name, shape):
    torch.manual_seed(0)
    report = onnx.export(pruned(build(name, shape=shape)), torch.randn(2, *shape), tmp_path / "model.onnx")
    assert report.difference < 1e-5
    assert set(report.milliseconds) == {"torch eager", "onnxruntime", "onnxruntime dense"}
    assert "times as fast" in str(report)
    assert (tmp_path / "model.onnx").stat().st_size == pytest.approx(report.megabytes * 2**20)


@needs_runtime
def test_every_operator_and_any_batch(pruned):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.AvgPool2d(2), nn.Conv2d(8, 8, (1, 3), padding="same"),
        nn.GELU(), nn.Flatten(), nn.Linear(8 * 3 * 4, 5),
    )  # fmt: skip
    model = pruned(model, 0.3)
    run = onnx.session(onnx.to_bytes(model, torch.randn(1, 4, 12, 16)))
    for batch in (1, 3):
        x = torch.randn(batch, 4, 12, 16)
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(run(x)), model(x), atol=1e-5)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"gossamer\[export\]"):
        onnx.export(nn.Linear(2, 2).eval(), torch.zeros(1, 2), tmp_path / "x.onnx")


@needs_runtime
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardsigmoid])
def test_every_activation(act, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), act(), nn.Flatten()).eval()
    assert onnx.export(model, 4 * torch.randn(2, 3, 6, 6), tmp_path / "model.onnx").difference < 1e-5


@needs_runtime
def test_what_cannot_be_exported_is_named_and_nothing_is_written(digits, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match=r"training mode; call model\.eval"):
        onnx.export(build("mobilenet-digits"), torch.randn(1, 1, 16, 16), path)
    with pytest.raises(ConfigError, match="float32"):
        onnx.export(digits, torch.randn(1, 1, 16, 16).double(), path)
    with pytest.raises(ConfigError, match=r"in its layer 'stem\.conv'"):
        onnx.export(digits, torch.randn(1, 3, 16, 16), path)
    assert not path.exists()


@needs_runtime
def test_networks_that_torch_has_to_export_take_any_batch(tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra export")
    torch.manual_seed(0)
    model = build("vit-tiny", shape=(3, 16, 16)).eval()
    report = onnx.export(model, torch.randn(1, 3, 16, 16), tmp_path / "vit.onnx")
    assert report.difference < 1e-5
    run = onnx.session((tmp_path / "vit.onnx").read_bytes())
    for batch in (1, 3):
        x = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(run(x)), model(x), atol=1e-5)
