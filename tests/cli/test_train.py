"""`gossamer train`: files, figures, resume to the same bits, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command_lines import ENVIRONMENT, SMALL
from safetensors.torch import load_file

from gossamer.runs.folder import RunFolder
from gossamer.runs.model_files import load_sparsity
from gossamer.training.config import Config

pytestmark = pytest.mark.timeout(300)  # several trainings, on a machine that may be busy

LONG = ("-r", "rigl", "--sparsity", "0.9", "--set", "train.log_every=1", "--set", "data.options={}", "--steps", "300")


def test_the_run_holds_the_model_that_its_figures_describe(runs):
    masks, about = load_sparsity(runs / "rigl")
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert abs(kept - 0.1 * total) <= 1
    assert "prune_grow" in about["recipe"]
    weights = load_file(runs / "rigl" / "model.safetensors")
    assert all(not weights[name][~mask].any() for name, mask in masks.items())


def test_json_is_alone_on_stdout_and_progress_on_stderr(gossamer, tmp_path):
    done = gossamer(
        "train", "--steps", 20, "--seed", 3, "--set", "train.optim.lr=0.05", "-o", tmp_path / "run", "--json"
    )
    assert done.code == 0
    assert done.json["config"]["train"]["seed"] == 3
    assert done.json["config"]["train"]["optim"]["lr"] == 0.05
    assert done.json["fit"]["steps"] == 20
    assert "20/20" in done.err
    again = gossamer("train", "--resume", "-o", tmp_path / "run", "--json")
    assert again.json == done.json


def test_dry_run_prints_settings_that_config_reads_and_writes_nothing(gossamer, tmp_path):
    options = ("-r", "granet", "--sparsity", "0.95", "--steps", "300", *SMALL)
    done = gossamer("train", *options, "--dry-run", cwd=tmp_path)
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []
    settings = Config(**yaml.safe_load(done.out))
    assert settings.recipe.options == {"sparsity": 0.95}
    assert settings.train.steps == 300
    (tmp_path / "c.yaml").write_text(done.out)
    assert gossamer("train", "-c", "c.yaml", "--dry-run", cwd=tmp_path).out == done.out
    as_json = gossamer("train", "-c", "c.yaml", "-r", "set", "--dry-run", "--json", cwd=tmp_path).json
    assert as_json["recipe"] == {"name": "set", "options": {}}
    assert os.listdir(tmp_path) == ["c.yaml"]


def test_a_recipe_option_may_be_a_part_and_any_recipe_takes_a_pattern(gossamer, tmp_path):
    sets = ("--set", "recipe.options.allocation=uniform", "--set", "recipe.options.pattern=block:4x1")
    only = ("--set", "recipe.options.only=['*pointwise*']", "--set", "recipe.options.every=10")
    done = gossamer("train", "-r", "rigl", *sets, *only, *SMALL, "--steps", 20, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    masks, about = load_sparsity(tmp_path / "run")
    assert yaml.safe_load(about["recipe"])["pattern"] == "block"
    assert all("pointwise" in name for name in masks)
    for mask in masks.values():
        grid = mask.reshape(mask.shape[0] // 4, 4, -1)
        assert (grid == grid[:, :1]).all()


def interrupted(folder, number):
    """The exit code of a training that got a signal after some steps."""
    command = [sys.executable, "-m", "gossamer.cli", "train", *LONG, "-o", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    log, deadline = Path(folder, "log.jsonl"), time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 5) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in err
    assert f"gossamer train --resume --output {folder}" in err
    return process.returncode


def test_a_stopped_training_resumes_to_the_same_bits(gossamer, tmp_path):
    assert interrupted(tmp_path / "stopped", signal.SIGINT) == 130
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert gossamer("compare", tmp_path / "stopped").code == 3
    changed = gossamer("train", "--resume", "--seed", 1, "-o", tmp_path / "stopped")
    assert changed.code == 2
    assert "train.seed was 0, is now 1" in changed.err
    assert gossamer("train", "--resume", "-o", tmp_path / "stopped").code == 0
    assert gossamer("train", *LONG, "-o", tmp_path / "whole").code == 0
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigterm_saves_too_and_ends_with_143(tmp_path):
    assert interrupted(tmp_path / "run", signal.SIGTERM) == 143
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert RunFolder(tmp_path / "run").steps()[-1] == status["step"] >= 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--recipe", "rigel"], 2, "did you mean 'rigl'"),
        (["--model", "resnet-21"], 2, "or 'resnet-20'"),
        (["--data", "digit"], 2, "did you mean 'digits'"),
        (["--set", "train.stepz=3"], 2, "did you mean 'train.steps'"),
        (["--set", "train"], 2, "a.b=value"),
        (["--set", "recipe.options.sparsty=0.5", "-r", "rigl"], 2, "did you mean 'sparsity'"),
        (["--sparsity", "0.5"], 2, "unknown option of recipe 'dense' 'sparsity'"),
        (["--sparsity", "1.5", "-r", "random"], 2, "density"),
        (["-r", "rigl", "--set", "recipe.options.pattern=2:4"], 2, "in quotes"),
        (["-r", "rigl", "--set", "recipe.options.pattern=row"], 2, "did you mean 'rows'"),
        (["-r", "nowhere.yaml"], 2, "cannot read the recipe nowhere.yaml"),
        (["-r", "rigl", "--steps", "50"], 2, "no mask update would happen"),
        (["--device", "tpu"], 2, "did you mean 'cpu'"),
        (["--model", "vgg-19", "--set", "model.options.shape=[3,32,32]"], 2, "cannot take an input of shape (1, 8, 8)"),
        (["--set", "task=regression"], 2, "task=classification"),
        (["--steps", "0"], 2, "train.steps = 0"),
        (["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--tracker", "tensorbord", "--steps", "2"], 2, "did you mean 'tensorboard'"),
        (["--data-dir", "/nowhere"], 3, "/nowhere"),
        (["--sede", "1"], 2, "--seed"),
    ],
)
def test_bad_usage_is_one_message_that_names_the_thing(gossamer, tmp_path, arguments, code, words):
    done = gossamer("train", *arguments, cwd=tmp_path)
    assert done.code == code
    assert words in done.err
    assert done.out == ""


def test_existing_output_is_kept_without_overwrite(gossamer, runs, tmp_path):
    before = (runs / "dense" / "result.json").read_bytes()
    done = gossamer("train", "--steps", 2, "-o", runs / "dense")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert (runs / "dense" / "result.json").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("mine")
    assert gossamer("train", "--steps", 2, "--overwrite", "-o", tmp_path).code == 2
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    for steps in (2, 3):
        assert gossamer("train", "--steps", steps, "--overwrite", "-o", tmp_path / "new").code == 0


def test_an_output_folder_that_cannot_be_written(gossamer, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # an administrator writes everywhere, but not here
        folder = Path("/proc")
    done = gossamer("train", "--steps", 2, "-o", folder / "run")
    assert done.code == 3
    assert "cannot write" in done.err


def test_a_model_of_ones_own_by_import_path(gossamer, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net(width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    options = ("--model", "mine:net", "--set", "model.options.width=5", "--steps", 5, "-o", "run", "--json")
    done = gossamer("train", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert [layer["numel"] for layer in done.json["card"]["layers"]] == [320, 50]
