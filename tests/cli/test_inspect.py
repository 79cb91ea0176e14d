"""`gossamer inspect` and the patterns that it recognises."""

import json

import pytest
import torch
from safetensors.torch import save_file

from gossamer.cli.tensors import pattern_of
from gossamer.sparsify.patterns import NM, Block, Cols, Rows


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (NM(2, 4), "2:4"),
        (NM(1, 4), "1:4"),
        (NM(1, 2), "1:2"),
        (NM(4, 8), "4:8"),
        (Rows(), "rows"),
        (Cols(), "cols"),
        (Block(4, 4), "block 4x4"),
        (Block(4, 1), "block 4x1"),
        (Block(16, 16), "block 16x16"),
    ],
)
@pytest.mark.parametrize("shape", [(64, 64), (32, 16, 3, 3)])
def test_projected_weights_show_their_pattern(pattern, name, shape):
    if isinstance(pattern, Block | Cols) and len(shape) == 4 and name != "block 4x1":
        shape = (32, 16, 4, 4)
    torch.manual_seed(3)
    weight = torch.randn(shape)
    keep = pattern.fixed(shape) or weight.numel() // pattern.cell(shape) // 3 * pattern.cell(shape)
    assert pattern_of(weight * pattern.project(weight.abs(), keep)) == name


def test_what_is_no_pattern_is_not_called_one():
    torch.manual_seed(0)
    assert pattern_of(torch.randn(64, 64) * (torch.rand(64, 64) < 0.5)) == "unstructured"
    assert pattern_of(torch.randn(64, 64) * (torch.rand(64, 64) < 0.005)) == "unstructured"
    assert pattern_of(torch.ones(4, 4)) == "dense"
    assert pattern_of(torch.zeros(4, 4)) == "all zero"


def test_a_file_is_shown_tensor_by_tensor(gossamer, tmp_path):
    weight = torch.arange(32.0).reshape(4, 8)
    weight[:, ::2] = 0
    save_file({"fc.weight": weight, "fc.bias": torch.ones(4), "count": torch.tensor(3)}, tmp_path / "w.safetensors")
    found = gossamer("inspect", tmp_path / "w.safetensors", "--json").json
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["fc.weight"]["pattern"] == "1:2"
    assert rows["fc.weight"]["nonzero"] == 16
    assert rows["fc.bias"]["pattern"] is None
    assert found["density"] == 21 / 37
    assert found["bytes"]["dense"] == 37 * 4 + 4  # the counter has eight bytes
    assert found["bytes"]["bitmap"] == 16 * 4 + 4 + 4 * 4 + 8
    assert found["bytes"]["safetensors"] == found["file_bytes"]
    shown = gossamer("inspect", tmp_path / "w.safetensors").out
    assert "4x8" in shown
    assert "density 56.76%" in shown


def test_folders_records_and_yaml(gossamer, runs, tmp_path):
    found = gossamer("inspect", runs / "rigl", "--json").json
    assert found["status"]["state"] == "done"
    assert found["config"]["recipe"]["name"] == "rigl"
    masks = gossamer("inspect", runs / "rigl" / "sparsity.json", "--json").json["masks"]
    assert {name: row["kept"] for name, row in masks.items()} == {n: r["kept"] for n, r in found["masks"].items()}
    assert "status: done at step 40" in gossamer("inspect", runs / "rigl").out
    settings = gossamer("inspect", runs / "rigl" / "config.yaml", "--json").json["settings"]
    assert settings == found["config"]
    recipe = gossamer("recipes", "show", "rigl").out
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert gossamer("inspect", tmp_path / "recipe.yaml").out == recipe


def test_a_pickle_is_refused_unless_asked_for_and_never_runs(gossamer, tmp_path):
    torch.save({"w": torch.eye(3)}, tmp_path / "good.pth")
    refused = gossamer("inspect", tmp_path / "good.pth")
    assert refused.code == 2
    assert "--import-pth" in refused.err
    kept = gossamer("inspect", tmp_path / "good.pth", "--import-pth", "-o", tmp_path / "w.safetensors", "--json")
    assert kept.json["tensors"][0]["nonzero"] == 3
    assert (tmp_path / "w.safetensors").exists()
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path) + b"/ran'\ntR.")
    assert gossamer("inspect", tmp_path / "evil.pth", "--import-pth").code == 3
    assert not (tmp_path / "ran").exists()


def test_damaged_and_unknown_files(gossamer, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"12345678901234567890")
    (tmp_path / "x.json").write_text(json.dumps({"format": "other"}))
    (tmp_path / "x.yaml").write_text("name: a\nupdates:\n- sett_to: {}\n")
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "empty").mkdir()
    assert gossamer("inspect", tmp_path / "x.safetensors").code == 3
    assert gossamer("inspect", tmp_path / "x.json").code == 3
    assert "did you mean 'set_to'" in gossamer("inspect", tmp_path / "x.yaml").err
    assert gossamer("inspect", tmp_path / "x.txt").code == 2
    assert gossamer("inspect", tmp_path / "empty").code == 3
    assert gossamer("inspect", tmp_path / "nothing").code == 3
    assert gossamer("inspect", tmp_path / "x.json", "-o", "y").code == 2
