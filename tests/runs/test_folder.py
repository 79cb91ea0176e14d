"""Run folders: what may be resumed, what is kept, what is refused."""

import pytest
import torch

from gossamer.errors import CheckpointError, ConfigError
from gossamer.runs.folder import RunFolder, flat, same_config

CONFIG = {"model": {"name": "mlp", "hidden": (30, 10)}, "lr": 0.1, "seed": 3}


def test_a_new_run_and_its_resumption(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    assert run.config() == {"model": {"name": "mlp", "hidden": [30, 10]}, "lr": 0.1, "seed": 3}
    run.save(5, {"x": torch.ones(2)})
    again = RunFolder.open(tmp_path / "run", CONFIG, resume=True)
    tree, meta = again.latest()
    assert tree["x"].tolist() == [1, 1]
    assert meta["step"] == 5
    assert RunFolder.open(tmp_path / "other", CONFIG, resume=True).latest() is None


def test_an_existing_run_is_not_written_over(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.save(5, {})
    with pytest.raises(ConfigError, match=r"holds a run; resume it \(--resume\), replace it \(--overwrite\)"):
        RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "notes.txt").write_text("mine")
    new = RunFolder.open(tmp_path, CONFIG | {"lr": 1.0}, overwrite=True)
    assert new.latest() is None
    assert new.config()["lr"] == 1.0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds files but no run"):
        RunFolder.open(tmp_path, CONFIG, overwrite=overwrite)
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.open(tmp_path / "thesis.tex", CONFIG, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.2}, "lr was 0.1, is now 0.2"),
        ({"model": {"name": "mlp", "hidden": (30, 11)}}, r"model.hidden was \[30, 10\], is now \[30, 11\]"),
        ({"extra": 1}, "extra was not set, is now 1"),
        ({"model": {"name": "mlp"}}, r"model.hidden was \[30, 10\], is now not set"),
        ({"model": {}}, "model.name was 'mlp', is now not set"),
    ],
)
def test_resuming_with_changed_arguments_names_the_key(tmp_path, change, message):
    RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=f"cannot resume with a changed argument: {message}"):
        RunFolder.open(tmp_path, CONFIG | change, resume=True)


def test_free_keys_may_change(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    RunFolder.open(tmp_path, CONFIG | {"lr": 0.2}, resume=True, free=("lr",))


def test_a_yaml_with_code_is_not_run(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    target = tmp_path / "exploded"
    (tmp_path / "config.yaml").write_text(f"x: !!python/object/apply:os.system ['touch {target}']\n")
    with pytest.raises(ConfigError, match="cannot read"):
        RunFolder.open(tmp_path, CONFIG, resume=True)
    assert not target.exists()


def test_the_last_and_the_best_checkpoints_stay(tmp_path):
    run = RunFolder.open(tmp_path, {}, keep=2)
    for step, score in [(10, 0.3), (20, 0.9), (30, 0.5), (40, None), (50, 0.9)]:
        run.save(step, {"x": torch.tensor(step)}, score=score)
    assert run.steps() == [40, 50]
    tree, meta = run.best()
    assert (int(tree["x"]), meta["score"]) == (20, 0.9)
    names = sorted(path.name.split(".")[0] for path in run.checkpoints.iterdir())
    assert names == ["best"] * 2 + ["step-00000040"] * 2 + ["step-00000050"] * 2
    with pytest.raises(ConfigError, match="keep=0"):
        RunFolder(tmp_path, keep=0)


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path):
    run = RunFolder.open(tmp_path, {})
    for step in (1, 2):
        run.save(step, {"x": torch.full((100,), float(step))})
    for payload in run.checkpoints.glob("step-00000002.*.safetensors"):
        payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="truncated or extended.*trying the checkpoint before it"):
        tree, _ = run.latest()
    assert tree["x"][0] == 1
    for payload in run.checkpoints.glob("*.safetensors"):
        payload.write_bytes(b"")
    with pytest.warns(UserWarning, match="truncated"), pytest.raises(CheckpointError, match="can be read"):
        run.latest()


def test_leftovers_of_killed_processes_are_ignored_and_cleared(tmp_path):
    run = RunFolder.open(tmp_path, {})
    run.save(7, {"x": torch.ones(1)})
    leftovers = [run.checkpoints / name for name in (".step-00000009.json.123-abcdef.tmp", ".tmpA1b2C3")]
    for leftover in leftovers:
        leftover.write_text("half")
    assert run.latest()[1]["step"] == 7
    RunFolder.open(tmp_path, {}, resume=True)
    assert not any(leftover.exists() for leftover in leftovers)


def test_status_and_result(tmp_path):
    run = RunFolder.open(tmp_path, {})
    assert run.status() is None
    assert run.result() is None
    run.set_status("interrupted", 12, "SIGTERM")
    run.write_result({"accuracy": 0.5})
    assert run.status() == {"state": "interrupted", "step": 12, "reason": "SIGTERM"}
    assert run.result() == {"accuracy": 0.5}
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        run.result()


def test_flat_and_same_config():
    assert flat({"a": {"b": {}, "c": {"d": 1}}}) == {"a.b": {}, "a.c.d": 1}
    same_config({"a": {"b": 1}}, {"a": {"b": 1}})
