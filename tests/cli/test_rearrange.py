"""`gossamer rearrange` on a saved model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gossamer.models.zoo import build
from gossamer.sparsify.strips import OutBlock

MODEL = ("--model", "mobilenet-digits", "--shape", "1,16,16")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(build("mobilenet-digits").state_dict(), path)
    return path


def test_the_model_computes_the_same_in_another_order(gossamer, weights, tmp_path):
    done = gossamer("rearrange", weights, *MODEL, "--passes", 1, "-o", tmp_path / "moved", "--json")
    assert done.code == 0, done.err
    record = done.json
    assert record["whole"]["before"] < record["whole"]["after"] < record["whole"]["free"]
    assert json.loads((tmp_path / "moved" / "rearrangement.json").read_text())["orders"] == record["orders"]
    one, other = build("mobilenet-digits").eval(), build("mobilenet-digits").eval()
    one.load_state_dict(load_file(weights))
    other.load_state_dict(load_file(tmp_path / "moved" / "model.safetensors"))
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(one(x), other(x), atol=1e-5)
    assert not torch.equal(one.blocks[1].pointwise.conv.weight, other.blocks[1].pointwise.conv.weight)


def test_pruned_in_blocks(gossamer, weights, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra report")
    picture = tmp_path / "gain.png"
    options = ("--passes", 0, "--block", 8, "--sparsity", 0.75, "--prune", "--picture", picture)
    done = gossamer("rearrange", weights, *MODEL, *options, "-o", tmp_path / "blocks")
    assert done.code == 0, done.err
    assert "all layers" in done.out
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    weight = load_file(tmp_path / "blocks" / "model.safetensors")["blocks.3.pointwise.conv.weight"]
    OutBlock(8).check(weight != 0)
    assert float((weight != 0).float().mean()) == pytest.approx(0.25)


@pytest.mark.parametrize(("option", "value"), [("--block", 3), ("--sparsity", 1.0), ("--sparsity", -1)])
def test_bad_usage_is_named(gossamer, weights, tmp_path, option, value):
    done = gossamer("rearrange", weights, *MODEL, option, value, "-o", tmp_path / "x")
    assert done.code == 2
    assert str(value) in done.err
    assert not (tmp_path / "x").exists()
