"""The loop: exact resume for every recipe, accumulation, clipping, NaN, averages, measures."""

import copy
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_toys import Parts, Stopping, recipe_of, toy_config, toy_data, toy_model, train_toy

from gossamer import recipes
from gossamer.data.dataset import Batches
from gossamer.errors import CheckpointError, ConfigError, DataError, NumericsError
from gossamer.runs.checkpoint import load_state
from gossamer.runs.folder import RunFolder
from gossamer.runs.log import read_log
from gossamer.runs.signals import Interrupted
from gossamer.sparsify import Sparsifier
from gossamer.training import Classification, OptimConfig, TrainConfig, fit
from gossamer.training.optim import lr_factor

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1] / "src")])


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def without_time(value):
    """A result or a log without its wall times."""
    if isinstance(value, dict):
        return {key: without_time(item) for key, item in value.items() if key != "seconds"}
    return [without_time(item) for item in value] if isinstance(value, list) else value


# resuming


@pytest.mark.parametrize("recipe", sorted(recipes.RECIPES))
def test_every_recipe_resumes_to_the_same_bits(tmp_path, recipe):
    whole = Classification(toy_model())
    expected = fit(whole, toy_data(), recipe_of(recipe), toy_config(), run=tmp_path / "whole")
    first = Stopping(toy_model(), at=17, signum=signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        fit(first, toy_data(), recipe_of(recipe), toy_config(), run=tmp_path / "cut")
    assert caught.value.code == 143
    status = RunFolder(tmp_path / "cut").status()
    assert (status["state"], status["reason"]) == ("interrupted", "stopped by SIGTERM")
    assert 0 < status["step"] < 40
    torch.manual_seed(99)
    second = Classification(toy_model(seed=5))  # the checkpoint decides, not what the new process starts from
    result = fit(second, toy_data(), recipe_of(recipe), toy_config(), run=tmp_path / "cut", resume=True)
    assert bits(second.model) == bits(whole.model)
    assert without_time(result) == without_time(expected)
    logs = [without_time(read_log(tmp_path / name / "log.jsonl")) for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    ends = [RunFolder(tmp_path / name).latest()[0] for name in ("whole", "cut")]
    for part in ("model", "optimizer", "rng"):
        assert repr(ends[0][part]) == repr(ends[1][part])
    assert RunFolder(tmp_path / "cut").status()["state"] == "done"


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "rmsprop"])
def test_every_optimiser_resumes_to_the_same_bits(tmp_path, optimizer):
    config = toy_config(optimizer, accumulate=3, clip=0.5, ema=0.9)
    whole = Classification(toy_model())
    fit(whole, toy_data(), recipe_of("granet"), config, run=tmp_path / "whole")
    first = Stopping(toy_model(), at=50, signum=signal.SIGINT)
    with pytest.raises(Interrupted):
        fit(first, toy_data(), recipe_of("granet"), config, run=tmp_path / "cut")
    second = Classification(toy_model())
    fit(second, toy_data(), recipe_of("granet"), config, run=tmp_path / "cut", resume=True)
    assert bits(second.model) == bits(whole.model)


CHILD = "import sys; from training_toys import train_toy; train_toy(sys.argv[1], 'rigl', int(sys.argv[2]), {signum})"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_process_resumes_in_another_one(tmp_path, signum, code):
    environment = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD.format(signum=int(signum)), str(tmp_path / "cut"), "19"]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert child.returncode == code, child.stderr
    assert RunFolder(tmp_path / "cut").status()["step"] < 40
    train_toy(str(tmp_path / "cut"), "rigl")
    whole = Classification(toy_model())
    fit(whole, toy_data(), recipe_of("rigl"), toy_config(), run=tmp_path / "whole")
    ends = [RunFolder(tmp_path / name).latest()[0] for name in ("whole", "cut")]
    assert repr(ends[0]["model"]) == repr(ends[1]["model"])
    assert repr(ends[0]["optimizer"]) == repr(ends[1]["optimizer"])
    result = RunFolder(tmp_path / "cut").result()
    assert without_time(result) == without_time(RunFolder(tmp_path / "whole").result())


def test_a_finished_run_resumes_to_its_result(tmp_path):
    expected = fit(Classification(toy_model()), toy_data(), recipe_of("gmp"), toy_config(), run=tmp_path)
    task = Classification(toy_model())
    again = fit(task, toy_data(), recipe_of("gmp"), toy_config(), run=tmp_path, resume=True)
    assert without_time(again) == without_time(expected)


def test_resuming_with_other_arguments_is_refused(tmp_path):
    fit(Classification(toy_model()), toy_data(), recipe_of("gmp"), toy_config(), run=tmp_path)
    config = toy_config(optim=OptimConfig(lr=0.07, warmup=0.1))
    with pytest.raises(ConfigError, match=r"changed argument: train.optim.lr was 0.05, is now 0.07"):
        fit(Classification(toy_model()), toy_data(), recipe_of("gmp"), config, run=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="changed argument: recipe"):
        fit(Classification(toy_model()), toy_data(), recipe_of("set"), toy_config(), run=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="holds a run; resume it"):
        fit(Classification(toy_model()), toy_data(), recipe_of("gmp"), toy_config(), run=tmp_path)
    other = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 4))
    with pytest.raises(CheckpointError, match=r"of another model: "):
        fit(Classification(other), toy_data(), recipe_of("gmp"), toy_config(), run=tmp_path, resume=True)
    free = toy_config(log_every=1, checkpoint_every=9)
    fit(Classification(toy_model()), toy_data(), recipe_of("gmp"), free, run=tmp_path, resume=True)


# against a loop written by hand


def by_hand(model, data, recipe, config, clip=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sparsifier = Sparsifier(model, optimizer, recipe, config.steps, data=list(data.train), seed=config.seed)
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * lr_factor(step, config.steps, config.optim)
        inputs, labels = data.train.batch(step)
        F.cross_entropy(model(inputs), labels).backward()
        if clip:
            sparsifier.after_backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finalize()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("recipe", ["dense", "snip", "rigl", "sr_ste"])
def test_the_loop_does_what_three_lines_in_a_plain_loop_do(recipe, clip):
    config = toy_config(clip=clip, validate_every=0)
    one, two = toy_model(dropout=0.0), toy_model(dropout=0.0)
    fit(Classification(one), toy_data(), recipe_of(recipe), config)
    by_hand(two, toy_data(), recipe_of(recipe), config, clip)
    assert bits(one) == bits(two)


@pytest.mark.parametrize("pieces", [2, 3])
def test_accumulation_gives_the_whole_batch(pieces):
    one, two = (toy_model(norm=False, dropout=0.0).double() for _ in range(2))
    data = toy_data()
    for part in (data.train, data.val, data.test):
        part.source.tensors = tuple(t.double() if t.is_floating_point() else t for t in part.source.tensors)
    fit(Classification(one), data, recipe_of("rigl"), toy_config())
    fit(Classification(two), data, recipe_of("rigl"), toy_config(accumulate=pieces))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_batch_that_is_too_small_to_split_is_named():
    with pytest.raises(DataError, match="batch of 16 samples cannot be split into 17"):
        fit(Classification(toy_model()), toy_data(), recipe_of("dense"), toy_config(accumulate=17))


def test_the_seed_decides_everything():
    models = [toy_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(seed + len(bits(model)))  # what was drawn before does not matter
        fit(Classification(model), toy_data(), recipe_of("set"), toy_config(seed=seed))
    assert bits(models[0]) == bits(models[1])
    assert bits(models[0]) != bits(models[2])


# what comes out


def test_the_result_has_exact_zeros_and_true_measures(tmp_path):
    task, data = Classification(toy_model()), toy_data()
    result = fit(task, data, recipes.gmp(sparsity=0.75, every=4), toy_config(), run=tmp_path)
    weights = torch.cat([m.weight.flatten() for m in task.model if isinstance(m, nn.Linear)])
    nonzero = int(weights.count_nonzero())
    assert nonzero == round(0.25 * len(weights))
    assert result["density"] == nonzero / len(weights)
    task.model.eval()
    inputs, labels = data.test.tensors()
    right = (task.model(inputs).argmax(1) == labels).double().mean()
    assert result["test"]["accuracy"] == float(right)
    assert [entry["step"] for entry in result["curve"]] == [10, 20, 30, 40]
    assert result["steps"] == 40
    assert result == RunFolder(tmp_path).result()


def test_the_best_checkpoint_is_the_one_that_validated_best(tmp_path):
    result = fit(Classification(toy_model()), toy_data(), recipe_of("set"), toy_config(), run=tmp_path)
    scores = [entry["accuracy"] for entry in result["curve"]]
    tree, meta = RunFolder(tmp_path).best()
    assert meta["score"] == max(scores)
    assert tree["loop"]["step"] == 10 * (1 + scores.index(max(scores)))


def test_without_validation_and_test_data_nothing_is_measured():
    result = fit(Classification(toy_model()), Parts(toy_data().train), recipe_of("dense"), toy_config())
    assert result["val"] is None
    assert result["test"] is None
    assert result["curve"] == []


def test_an_average_is_used_and_is_sparse():
    plain, averaged = Classification(toy_model()), Classification(toy_model())
    fit(plain, toy_data(), recipe_of("rigl"), toy_config())
    result = fit(averaged, toy_data(), recipe_of("rigl"), toy_config(ema=0.9))
    assert bits(plain.model) != bits(averaged.model)
    weights = [m.weight for m in averaged.model if isinstance(m, nn.Linear)]
    share = sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    assert share == pytest.approx(result["density"], abs=1e-9)


def test_bf16_trains_and_leaves_a_plain_model():
    task = Classification(toy_model())
    result = fit(task, toy_data(), recipe_of("granet"), toy_config(precision="bf16"))
    assert result["test"]["accuracy"] > 0.5
    assert copy.deepcopy(task.model)(torch.zeros(2, 8)).dtype == torch.float32
    assert "forward" not in vars(task.model)


# what goes wrong


class Poisoned(Classification):
    """The loss becomes NaN at the 25th step."""

    calls = 0

    def loss(self, model, batch):
        self.calls += model.training
        return super().loss(model, batch) * (float("nan") if self.calls == 25 else 1.0)


def test_a_nan_loss_stops_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(NumericsError, match=r"the loss is nan at step 25 of 40 \(learning rate"):
        fit(Poisoned(toy_model()), toy_data(), recipe_of("granet"), toy_config(), run=tmp_path)
    run = RunFolder(tmp_path)
    assert run.status()["state"] == "failed"
    assert "nan at step 25" in run.status()["reason"]
    assert run.steps() == [20, 21]
    tree, _ = run.latest()
    assert all(bool(value.isfinite().all()) for value in tree["model"].values())
    whole, resumed = Classification(toy_model()), Classification(toy_model())
    fit(resumed, toy_data(), recipe_of("granet"), toy_config(), run=tmp_path, resume=True)
    fit(whole, toy_data(), recipe_of("granet"), toy_config())
    assert bits(resumed.model) == bits(whole.model)


class Exploding(Classification):
    """An infinite weight that no loss shows: the checkpoint must not be written."""

    calls = 0

    def loss(self, model, batch):
        self.calls += model.training
        if self.calls == 9:
            with torch.no_grad():
                self.model[1].bias[0] = float("inf")
        return super().loss(model, batch).nan_to_num(0.0, 0.0, 0.0)


def test_bad_weights_are_never_saved(tmp_path):
    with pytest.raises(NumericsError, match=r"\d\.(bias|weight) has NaN or infinite weights after step 10"):
        fit(Exploding(toy_model()), toy_data(), recipe_of("dense"), toy_config(checkpoint_every=5), run=tmp_path)
    tree, meta = RunFolder(tmp_path).latest()
    assert meta["step"] == 5
    assert all(bool(value.isfinite().all()) for value in tree["model"].values())


def test_unusable_devices_are_refused():
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no GPU here"):
            fit(Classification(toy_model()), toy_data(), recipe_of("dense"), toy_config(device="cuda"))
    config = toy_config(precision="fp16", device="cpu")
    with pytest.raises(ConfigError, match="'fp16' needs a GPU"):
        fit(Classification(toy_model()), toy_data(), recipe_of("dense"), config)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    run = RunFolder.open(tmp_path, {})
    run.save(5, {"weights": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="not of a training like this one: 'model'"):
        fit(Classification(toy_model()), toy_data(), recipe_of("dense"), toy_config(), run=run, resume=True)


def test_checkpoints_hold_no_pickle(tmp_path):
    fit(Classification(toy_model()), toy_data(), recipe_of("granet"), toy_config(), run=tmp_path)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".yaml", ".safetensors"}
    assert load_state(tmp_path / "checkpoints" / "best.json")[1]["recipe"] == "granet"


def test_a_user_without_a_run_folder_keeps_his_ctrl_c():
    task = Stopping(toy_model(), at=5, signum=signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(task, toy_data(), recipe_of("dense"), TrainConfig(steps=10))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
@pytest.mark.filterwarnings("default")
def test_a_tracker_writes_beside_the_log(tmp_path):
    task = Classification(toy_model())
    fit(task, toy_data(), recipe_of("rigl"), toy_config(), run=tmp_path, trackers=("tensorboard",))
    assert list(tmp_path.rglob("*tfevents*"))
    assert read_log(tmp_path / "log.jsonl")


def test_progress_and_unshuffled_small_last_batches(capsys):
    tensors = toy_data().train.source.tensors
    data = Parts(Batches(tensors, 20))  # 48 samples: batches of 20, 20, 8
    fit(Classification(toy_model()), data, recipe_of("dense"), toy_config(), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("dense: 40/40")
