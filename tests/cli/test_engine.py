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
    small = (tmp_path / "small", *model)
    report = json.loads(run("compile", *small, "-o", tmp_path / "small.plan", "--threads", 1, "--json"))
    assert report["difference"] < 1e-4
    lines = run("bench", tmp_path / "small.plan", "--threads", 2).splitlines()
    assert "2 thread(s)" in lines[0]
    assert "stem.conv (conv 3x3" in lines[1]


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
