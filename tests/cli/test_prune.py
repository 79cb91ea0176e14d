"""`gossamer prune`: exact counts on trained weights, batch statistics, measures before and after."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gossamer.runs.model_files import load_sparsity


def test_pruning_keeps_the_largest_weights_and_recalibrates(gossamer, runs, tmp_path):
    done = gossamer("prune", runs / "dense", "--sparsity", 0.5, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert "batch statistics recalibrated" in done.err
    before = load_file(runs / "dense" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    masks, _ = load_sparsity(tmp_path / "out")
    kept = torch.cat([before[name][mask].abs() for name, mask in masks.items()])
    dropped = torch.cat([before[name][~mask].abs() for name, mask in masks.items()])
    assert abs(len(kept) - len(dropped)) <= 1
    assert kept.min() >= dropped.max()
    assert all(torch.equal(after[name], before[name] * mask) for name, mask in masks.items())
    assert not torch.equal(after["stem.bn.running_var"], before["stem.bn.running_var"])
    trained = gossamer("compare", runs / "dense", "--json").json["rows"][0]["metric"]["mean"]
    assert done.json["before"]["accuracy"] == trained
    assert done.json["card"]["batchnorm_recalibrated"]
    assert done.json["card"]["training_flops"] is None


@pytest.mark.parametrize("pattern", ["2:4", "block:4x1", "rows"])
def test_patterns_hold_and_excluded_layers_stay_dense(gossamer, runs, tmp_path, pattern):
    exclude = [part for name in ("*depthwise*", "stem*", "head*") for part in ("--exclude", name)]
    options = ("--pattern", pattern, "--sparsity", 0.5, *exclude)
    assert gossamer("prune", runs / "dense", *options, "-o", tmp_path / "out").code == 0
    found = gossamer("inspect", tmp_path / "out" / "model.safetensors", "--json").json
    patterns = {t["name"]: t["pattern"] for t in found["tensors"] if t["pattern"]}
    assert patterns["head.fc.weight"] == "dense"
    pointwise = {value for name, value in patterns.items() if "pointwise" in name}
    assert pointwise - {"dense", "all zero"} == {pattern.replace(":", " ") if "block" in pattern else pattern}


def test_a_bare_file_needs_its_model_and_no_data(gossamer, runs, tmp_path):
    file = runs / "dense" / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    alone = tmp_path / "model.safetensors"
    assert "--model" in gossamer("prune", alone).err
    shape = ("--set", "model.options={shape: [1, 12, 12], classes: 10}")
    done = gossamer(
        "prune", alone, "-m", "mobilenet-digits", *shape, "--sparsity", 0.5, "-o", tmp_path / "out", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["card"] is None
    assert done.json["before"] is None
    masks, _ = load_sparsity(tmp_path / "out")
    assert abs(sum(int(m.sum()) for m in masks.values()) - 0.5 * sum(m.numel() for m in masks.values())) <= 1
    assert "--data" in gossamer("compare", tmp_path / "out").err
    wrong = gossamer("prune", alone, "-m", "mlp", "-o", tmp_path / "other")
    assert wrong.code == 3
    assert "another model" in wrong.err
    assert not (tmp_path / "other").exists()


def test_dry_run_and_refusals(gossamer, runs, tmp_path):
    dry = gossamer("prune", runs / "dense", "--score", "snip", "--dry-run", cwd=tmp_path)
    assert yaml.safe_load(dry.out)["recipe"] == {"name": "snip", "options": {"sparsity": 0.9}}
    assert list(tmp_path.iterdir()) == []
    cases = {
        ("--score", "magnitud"): "did you mean 'magnitude'",
        ("--pattern", "3x4"): "unknown pattern '3x4'",
        ("--pattern", "2:4"): "does not divide",
        ("--sparsity", "1"): "density",
        ("--allocation", "erkk"): "did you mean 'erk'",
        ("--only", "stemm*"): "stem",
    }
    for options, words in cases.items():
        done = gossamer("prune", runs / "dense", *options, "-o", tmp_path / "out")
        assert (done.code, words in done.err) == (2, True), done
        assert not (tmp_path / "out").exists()
    assert gossamer("prune", tmp_path / "nothing").code == 3
    (tmp_path / "w.pth").write_bytes(b"no")
    assert "--import-pth" in gossamer("prune", tmp_path / "w.pth").err
