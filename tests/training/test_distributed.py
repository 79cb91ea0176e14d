"""Two processes on gloo: the same masks on both, and one process with the doubled batch."""

import os
import subprocess
import sys
import time
from pathlib import Path

import distributed_jobs as jobs
import pytest
import torch
from training_toys import recipe_of, toy_config

from gossamer.runs.checkpoint import load_state
from gossamer.runs.folder import RunFolder
from gossamer.runs.log import read_log
from gossamer.training import Classification, fit
from gossamer.training.distributed import check_equal, fingerprint, gather, largest, launch, rank, world


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(jobs.everything, 2, str(folder))
    return folder


@pytest.mark.parametrize("recipe", ["rigl", "granet", "set", "sr_ste", "snip"])
def test_masks_and_weights_are_equal_on_both(trained, recipe):
    zero, one = (load_state(trained / f"{recipe}-{number}")[0] for number in (0, 1))
    assert zero["masks"]
    assert fingerprint(zero["masks"]) == fingerprint(one["masks"])
    assert fingerprint(zero["model"]) == fingerprint(one["model"])
    assert zero["accuracy"] == one["accuracy"]


@pytest.mark.parametrize("recipe", ["rigl", "set", "sr_ste", "snip"])
def test_two_processes_equal_one_with_the_doubled_batch(trained, recipe):
    """Without batch normalisation: each process sees half of every batch, one process sees all of it."""
    model, data = jobs.doubles()
    masks: dict = {}
    config = toy_config(clip=0.5, accumulate=2, device="cpu")
    fit(Classification(model), data, recipe_of(recipe), config, on_start=lambda sp: masks.update(sp.entry_masks))
    tree, _ = load_state(trained / f"{recipe}-0")
    assert fingerprint(tree["masks"]) == fingerprint(masks)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(tree["model"][name], value, rtol=0, atol=1e-6)


def test_one_process_writes_the_run(trained):
    run = RunFolder(trained / "rigl")
    assert run.status()["state"] == "done"
    assert run.result()["steps"] == 40
    steps = [record["step"] for record in read_log(run.log_path) if "loss" in record]
    assert steps == list(range(5, 41, 5))
    assert len(run.latest()[0]["rng"]) == 2


def test_helpers(trained):
    assert (rank(), world(), largest(3), gather("x")) == (0, 1, 3, ["x"])
    check_equal({"m": torch.ones(1)}, "masks")
    for number in (0, 1):
        said = (trained / f"masks-{number}").read_text()
        assert said == "the masks of process 1 differ from those of process 0"
        assert "holds a run; resume it" in (trained / f"folder-{number}").read_text()


def test_a_signal_to_one_stops_both_and_both_resume(trained):
    assert RunFolder(trained / "cut").status() == {"state": "done", "step": 40, "reason": ""}


def test_a_process_that_dies_ends_the_job(tmp_path):
    began = time.monotonic()
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="exit code 3"):
        launch(jobs.die, 2, str(tmp_path))
    assert time.monotonic() - began < 60


MAIN = """
import sys, torch
torch.set_num_threads(1)
from training_toys import *
task = Classification(toy_model())
fit(task, toy_data(), recipe_of("rigl"), toy_config(device="cpu"), run=sys.argv[1])
from gossamer.training.distributed import world
assert world() == 2
"""


@pytest.mark.slow
def test_torchrun_needs_no_set_up_by_the_user(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1] / "src")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "out").status()["state"] == "done"


def test_fingerprints_see_every_difference():
    base = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor(True)}
    others = [
        {"a": torch.tensor([1.0, -0.0]), "b": torch.tensor(True)},
        {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor(True)},
        {"a": torch.tensor([1.0, 0.0], dtype=torch.float64), "b": torch.tensor(True)},
        {"c": torch.tensor([1.0, 0.0]), "b": torch.tensor(True)},
    ]
    assert len({fingerprint(tensors) for tensors in [base, *others]}) == 5
    assert fingerprint(dict(reversed(base.items()))) == fingerprint(base)
