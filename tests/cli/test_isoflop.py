"""`gossamer iso-flop`: the table of a network at equal FLOPs, and the training that it writes."""

import pytest
import torch

from gossamer.architectures.isoflop.build import PATH
from gossamer.errors import ConfigError
from gossamer.models import build

MLP = ("--model", "mlp", "--set", 'base_options={"hidden": [60, 60, 60]}')


def test_every_family_costs_what_the_dense_network_does(gossamer):
    done = gossamer("iso-flop", *MLP, "--shape", "1,8,8", "--sparsity", "0.5,0.6", "--json")
    assert done.code == 0, done.err
    assert "0.6) is no whole number of branches" in done.err  # said, and the rest is shown
    rows = done.json["rows"]
    assert len(rows) == 7
    for row in rows:
        assert row["ratio"] == pytest.approx(1, abs=0.01)
        assert 1 <= row["rigl_step"] < 1.05
    (wide,) = [row for row in rows if (row["family"], row["sparsity"]) == ("wide", 0.5)]
    assert wide["parameters"] > 1.3 * wide["non-zeros"]
    shown = gossamer("iso-flop", *MLP, "--shape", "1,8,8", "--family", "doped")
    assert shown.code == 0, shown.err
    assert "RigL step" in shown.out


def test_what_it_writes_is_trained(gossamer, tmp_path):
    chosen = ("--data", "digits", "--family", "wide", "--sparsity", 0.75)
    done = gossamer("iso-flop", *MLP, *chosen, "-o", "iso", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    config, (row,) = done.json["config"], done.json["rows"]
    trained = gossamer("train", "-c", config, "--steps", 160, "-o", "run", "--json", cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert trained.json["fit"]["density"] == pytest.approx(row["density"], abs=1e-3)
    assert gossamer("compile", "run", cwd=tmp_path).code == 0  # a run like any other


def test_the_runs_seed_decides_the_new_weights():
    def first(seed):
        torch.manual_seed(seed)
        options = {"base": "mlp", "family": "wide", "sparsity": 0.5, "shape": [1, 8, 8], "classes": 10}
        return next(build(PATH, **options, base_options={"hidden": [60, 60]}).parameters()).detach()

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --data or --shape"),
        (("--shape", "8x8"), "whole numbers with commas"),
        (("--shape", "1,8,8", "--family", "widd"), "did you mean 'wide'"),
        (("--shape", "1,8,8", "--sparsity", "1.0"), "must lie in [0, 1)"),
        (("--shape", "1,8,8", "--sparsity", "0.6", "--family", "parallel"), "choose 0.5 (2) or 0.6667 (3)"),
        (("--shape", "1,8,8", "--set", "layers={}"), "did you mean 'layer'"),
        (("--shape", "1,8,8", "--family", "parallel", "--set", 'layer={"nrm": 1}'), "nrm"),
        (("--shape", "1,8,8", "--family", "wide", "--sparsity", "0.5", "-o", "x"), "writes one training"),
        (("--data", "digits", "-o", "x"), "writes one training"),
        (
            ("--data", "digits", "--family", "wide", "--sparsity", "0.75", "--method", "rigle", "-o", "x"),
            "did you mean 'rigl'",
        ),
    ],
)
def test_bad_input_is_named(gossamer, tmp_path, arguments, message):
    done = gossamer("iso-flop", *MLP, *arguments, cwd=tmp_path)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not any(tmp_path.iterdir())


def test_a_layers_option_is_checked_in_python_too():
    with pytest.raises(ConfigError, match="wide layers with the options"):
        build(PATH, base="mlp", family="wide", sparsity=0.5, shape=[1, 8, 8], classes=10, layer={"seed": 1})
