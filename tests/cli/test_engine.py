"""The engine's commands on a saved model."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from gossamer.cli import app as cli
from gossamer.kernels import native
from gossamer.models.zoo import build

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


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
    assert (tmp_path / "small" / "model.safetensors").exists()


def test_a_file_alone_needs_a_model(weights):
    result = CliRunner().invoke(cli.app, ["compile", str(weights)])
    assert result.exit_code != 0
    assert "--model" in str(result.exception)
