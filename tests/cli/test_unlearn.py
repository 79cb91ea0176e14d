"""`gossamer unlearn`: from a run folder to a model that forgot, its audit and its page."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gossamer.runs.model_files import load_sparsity

QUICK = ("-O", "epochs=1", "-O", "lr=0.05", "-O", "gamma=2e-3")


def test_a_class_is_forgotten_with_an_audit(gossamer, runs, tmp_path):
    out = tmp_path / "request"
    done = gossamer("unlearn", runs / "rigl", "--class", 3, *QUICK, "--retrain", "-o", out, "--json")
    assert done.code == 0, done.err
    assert done.json["scenario"] == "class-wise: 3"
    assert done.json["settings"]["gamma"] == 0.002
    assert list(done.json["gaps"]) == ["retrain"]
    assert done.json["leaked"] == 0
    stored = json.loads((out / "audit.json").read_text())
    assert stored["request"] == done.json["request"]
    assert "<table" in (out / "audit.html").read_text()
    before, (masks, about) = load_sparsity(runs / "rigl")[0], load_sparsity(out)
    weights, old = load_file(out / "model.safetensors"), load_file(runs / "rigl" / "model.safetensors")
    assert about == {"unlearned": stored["request"]}
    assert set(masks) == set(before)
    for name, mask in masks.items():
        assert torch.equal(mask, before[name])
        assert not weights[name][~mask].any()
    assert any(not torch.equal(weights[name], old[name]) for name in masks)
    again = gossamer("unlearn", runs / "rigl", "--class", 3, *QUICK, "-o", out)
    assert (again.code, "--overwrite" in again.err) == (3, True)
    anew = gossamer("unlearn", runs / "rigl", "--class", 3, *QUICK, "-o", out, "--overwrite")
    assert anew.code == 0, anew.err
    assert "gap is unknown" in anew.err


def test_a_list_of_samples_and_a_random_share(gossamer, runs, tmp_path):
    (tmp_path / "ids.txt").write_text("5\n17\n4\n")
    done = gossamer(
        "unlearn", runs / "dense", "--indices", "ids.txt", "--method", "influence", "-O", "samples=20", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert "3 samples to forget" in done.err
    assert (tmp_path / "out" / "unlearn" / "audit.html").exists()
    dry = gossamer("unlearn", runs / "dense", "--random", 0.1, "--dry-run", "-o", tmp_path / "none")
    assert (dry.code, "90 samples to forget, 810 stay" in dry.err) == (0, True)
    assert not (tmp_path / "none").exists()


def test_a_second_request_does_not_bring_the_first_back(gossamer, runs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done = gossamer("unlearn", runs / "rigl", "--class", 3, *QUICK, "-o", first, "--json")
    assert done.code == 0, done.err
    (tmp_path / "ids.txt").write_text("5\n17\n4\n")
    again = gossamer("unlearn", first, "--indices", tmp_path / "ids.txt", *QUICK, "-o", second, "--json")
    assert again.code == 0, again.err
    count = done.json["samples"]["forget"]
    assert f"{count} samples of earlier requests are left out too" in again.err
    assert again.json["samples"]["retain"] < done.json["samples"]["retain"]
    assert again.json["scenario"] == "class-wise: 3"  # still gone, so the test leaves it out
    listed = json.loads((second / "forgotten.json").read_text())["indices"]
    assert {4, 5, 17} <= set(listed)
    assert len(listed) == again.json["samples"]["forget"]
    assert gossamer("compile", second).code == 0  # a folder like that of a run
    other = ("--set", "data.options.val=0.2")
    moved = gossamer("unlearn", first, "--class", 4, *other, "-o", tmp_path / "none")
    assert (moved.code, "lists samples of" in moved.err) == (2, True), moved.err
    (first / "forgotten.json").write_text("{")
    torn = gossamer("unlearn", first, "--class", 4, "-o", tmp_path / "none")
    assert (torn.code, "forgotten.json cannot be read" in torn.err) == (3, True), torn.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "exactly one of"),
        (("--class", 3, "--random", 0.1), 2, "exactly one of"),
        (("--class", 3, "--method", "fine-tun"), 2, "did you mean 'fine-tune'"),
        (("--class", 3, "-O", "gama=1"), 2, "did you mean 'gamma'"),
        (("--class", 3, "-O", "gamma"), 2, "name=value"),
        (("--class", 12), 3, "class 12 has no training sample"),
        (("--random", 1.5), 2, "share"),
        (("--indices", "words.txt"), 3, "whole numbers"),
        (("--indices", "empty.txt"), 3, "empty"),
        (("--indices", "large.txt"), 3, "sample 99999 does not exist"),
        (("--indices", "nothing.txt"), 3, "cannot read"),
    ],
)
def test_refusals(gossamer, runs, tmp_path, options, code, words):
    (tmp_path / "words.txt").write_text("one two")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "large.txt").write_text("99999")
    done = gossamer("unlearn", runs / "dense", *options, "-o", tmp_path / "out", cwd=tmp_path)
    assert (done.code, words in done.err) == (code, True), done
    assert not (tmp_path / "out").exists()
