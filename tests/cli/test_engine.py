"""The engine's commands on a saved model."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from gossamer.cli import app as cli
from gossamer.engine import tune
from gossamer.errors import ConfigError
from gossamer.kernels import native
from gossamer.models.zoo import build

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short measurements."""
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    monkeypatch.setattr(tune, "RACE_SECONDS", 0.02)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_file(build("mobilenet-digits").state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(*arguments) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_compile_and_bench(weights, tmp_path):
    model = ("--model", "mobilenet-digits", "--shape", "1,16,16")
    plan = tmp_path / "digits.plan"
    report = json.loads(run("compile", weights, *model, "-o", plan, "--threads", 1, "--json"))
    assert report["layers"][0]["layer"] == "stem.conv"
    measured = json.loads(run("bench", plan, "--json"))
    assert measured["milliseconds"] > 0
    assert len(measured["steps_us"]) == len(report["layers"])


def test_shrink(weights, tmp_path):
    model = ("--model", "mobilenet-digits", "--shape", "1,16,16")
    found = json.loads(run("shrink", weights, *model, "--budget", 0.5, "-o", tmp_path / "small", "--json"))
    assert found["cost"] <= found["budget"]
    small = (tmp_path / "small", *model)
    report = json.loads(run("compile", *small, "-o", tmp_path / "small.plan", "--threads", 1, "--json"))
    assert report["difference"] < 1e-4
    lines = run("bench", tmp_path / "small.plan", "--threads", 2).splitlines()
    assert "2 thread(s)" in lines[0]
    assert "stem.conv (conv 3x3" in lines[1]
    assert "when it was compiled (1 thread(s), batch 1)" in lines[-1]
    assert "torch eager" in lines[-1]


def test_export_reads_what_shrink_wrote(weights, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    model = ("--model", "mobilenet-digits", "--shape", "1,16,16")
    run("shrink", weights, *model, "--budget", 0.5, "-o", tmp_path / "small", "--json")
    found = json.loads(run("export", tmp_path / "small", *model, "-o", tmp_path / "small.onnx", "--json"))
    assert found["difference"] < 1e-4


def test_a_damaged_shrink_plan_is_named(weights, tmp_path):
    (tmp_path / "shrink-plan.json").write_text("{")
    result = CliRunner().invoke(cli.app, ["compile", str(weights), "--model", "mobilenet-digits", "--shape", "1,16,16"])
    assert "shrink-plan.json" in str(result.exception)


def test_a_truncated_plan_is_refused(weights, tmp_path):
    (tmp_path / "cut.plan").write_bytes(b"GOSSPLAN" + bytes(200))
    result = CliRunner().invoke(cli.app, ["bench", str(tmp_path / "cut.plan")])
    assert result.exit_code != 0
    assert "version" in str(result.exception)


def test_a_file_alone_needs_a_model(weights):
    result = CliRunner().invoke(cli.app, ["compile", str(weights)])
    assert result.exit_code != 0
    assert "--model" in str(result.exception)


OWN = """
from torch import nn

def Net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a model of the user's own, as `train --model mynet:Net` leaves it."""
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"mynet_{tmp_path.name}"
    Path(f"{name}.py").write_text(OWN)
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"data": {"name": "digits"}, "model": {"name": f"{name}:Net"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    sys.path.insert(0, str(tmp_path))
    save_file(import_module(name).Net().state_dict(), folder / "model.safetensors")
    sys.path.remove(str(tmp_path))
    return folder, name


def test_a_model_of_ones_own_is_compiled_and_shrunk(own, tmp_path):
    folder, name = own
    run("compile", folder, "-o", tmp_path / "own.plan", "--threads", 1)
    run("compile", folder / "model.safetensors", "--model", f"{name}:Net", "--shape", "1,8,8", "--threads", 1)
    found = json.loads(run("shrink", folder, "--budget", 0.7, "-o", tmp_path / "small", "--json"))
    assert found["recalibrated"] > 0
    assert {"before_test", "test"} <= set(found)
    assert 0 <= found["test"]["accuracy"] <= 1
    assert "run" in run("compile", tmp_path / "small", "--threads", 1)


def refused(*arguments) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def test_outputs_that_would_destroy_something_are_refused(weights, tmp_path):
    model = ("--model", "mobilenet-digits", "--shape", "1,16,16")
    assert "is a folder; name a file, such as" in refused("compile", weights, *model, "-o", tmp_path)
    assert "is a folder; name a file, such as" in refused("export", weights, *model, "-o", tmp_path)
    for command in ("shrink", "rearrange"):
        assert "the model that is to be changed" in refused(command, weights, *model, "-o", tmp_path)
        assert "is a file" in refused(command, weights, *model, "-o", weights)
    other = tmp_path / "run"
    other.mkdir()
    (other / "status.json").write_text("{}")
    assert "holds a run" in refused("shrink", weights, *model, "-o", other)


def test_bench_wants_a_plan(weights, tmp_path):
    assert "make one by gossamer compile" in refused("bench", tmp_path)
    assert "make one by gossamer compile" in refused("bench", weights)


def test_a_plan_that_cannot_be_saved_is_shown_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    save_file(build("vit-tiny", shape=(1, 8, 8)).state_dict(), tmp_path / "model.safetensors")
    arguments = ("--model", "vit-tiny", "--shape", "1,8,8", "--threads", "1", "-o", str(tmp_path / "vit.plan"))
    result = CliRunner().invoke(cli.app, ["compile", str(tmp_path / "model.safetensors"), *arguments])
    assert "blocks.0.mlp.fc1" in result.stdout
    assert "cannot be saved" in str(result.exception)
    assert not (tmp_path / "vit.plan").exists()
