"""Stages: iterative pruning with rewinding, a soup and surgery, stopped anywhere and resumed."""

import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_toys import Stopping, toy_config, toy_data, toy_model

from gossamer import recipes
from gossamer.errors import CheckpointError, ConfigError
from gossamer.runs.folder import RunFolder
from gossamer.runs.signals import Interrupted
from gossamer.sparsify.allocation import Global
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import Magnitude
from gossamer.sparsify.updates import SetTo
from gossamer.training import Classification, Memory, Stage, run_stages

CONFIG = toy_config(steps=12, validate_every=0, checkpoint_every=5)


def copy_of(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def remember(name: str):
    def on_exit(model, memory):
        memory.values[name] = copy_of(model)

    return on_exit


def rewind(model, sparsifier, memory):
    model.load_state_dict(memory.values["early"])


def pruned(density: float) -> Recipe:
    return Recipe("imp", updates=(SetTo(Magnitude(), density, Global()),))


def imp() -> list[Stage]:
    """Train, then twice: keep the largest weights, rewind the others, train."""
    return [
        Stage("early", recipes.dense(), CONFIG, on_exit=remember("early")),
        Stage("dense", recipes.dense(), CONFIG),
        Stage("half", pruned(0.5), CONFIG, on_start=rewind),
        Stage("quarter", pruned(0.25), CONFIG, on_start=rewind),
    ]


def soup() -> list[Stage]:
    """Two branches from one start, averaged; then neurons are removed and the rest is trained."""

    def restart(model, memory):
        model.load_state_dict(memory.values["early"])

    def average(model, memory):
        parts = [memory.values["left"], memory.values["right"]]
        model.load_state_dict({name: torch.stack([p[name].double() for p in parts]).mean(0) for name in parts[0]})

    def narrow(model, memory):
        smaller = toy_model(dropout=0.2)
        smaller[4], smaller[6] = nn.Linear(16, 6), nn.Linear(6, 4)
        smaller[0], smaller[1] = model[0], model[1]
        with torch.no_grad():
            smaller[4].weight.copy_(model[4].weight[:6])
            smaller[4].bias.copy_(model[4].bias[:6])
            smaller[6].weight.copy_(model[6].weight[:, :6])
            smaller[6].bias.copy_(model[6].bias)
        return smaller

    right = CONFIG.model_copy(update={"seed": 1})
    return [
        Stage("early", recipes.dense(), CONFIG, on_exit=remember("early")),
        Stage("left", recipes.dense(), CONFIG, on_exit=remember("left")),
        Stage("right", recipes.dense(), right, on_enter=restart, on_exit=remember("right")),
        Stage("average", on_enter=average),
        Stage("narrow", pruned(0.5), CONFIG, surgery=narrow),
        Stage("again", pruned(0.4), CONFIG),
    ]


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("make", [imp, soup])
@pytest.mark.parametrize("at", [2, 17, 30, 37, 47, 55])
def test_stopped_anywhere_the_stages_end_with_the_same_bits(tmp_path, make, at):
    whole = Classification(toy_model())
    expected = run_stages(make(), whole, toy_data())
    total = sum(stage.train.steps for stage in make() if stage.train)
    stopping = Stopping(toy_model(), at, signal.SIGTERM)
    if at < total:
        with pytest.raises(Interrupted):
            run_stages(make(), stopping, toy_data(), tmp_path / "cut")
    resumed = Classification(toy_model())
    memory = run_stages(make(), resumed, toy_data(), tmp_path / "cut", resume=True)
    assert bits(resumed.model) == bits(whole.model)
    for name, result in expected.results.items():
        assert memory.results[name]["test"] == result["test"]
    assert RunFolder(tmp_path / "cut").status()["state"] == "done"


def test_a_finished_list_is_only_read_again(tmp_path):
    whole = Classification(toy_model())
    first = run_stages(soup(), whole, toy_data(), tmp_path)
    again = Stopping(toy_model(), at=1, signum=signal.SIGTERM)  # would stop at the first loss of any training
    second = run_stages(soup(), again, toy_data(), tmp_path, resume=True)
    assert bits(again.model) == bits(whole.model)
    assert second.results == first.results
    assert again.calls == 0


def test_rewinding_keeps_the_mask_and_the_early_weights():
    seen = {}

    def look(model, sparsifier, memory):
        rewind(model, sparsifier, memory)
        sparsifier.enforce()
        seen.update(copy_of(model))
        seen["mask"] = {name: mask.clone() for name, mask in sparsifier.entry_masks.items()}

    stages = imp()
    stages[2] = replace(stages[2], on_start=look)
    task, memory = Classification(toy_model()), Memory()
    run_stages(stages, task, toy_data(), memory=memory)
    kept = 0
    for name, mask in seen["mask"].items():
        early = memory.values["early"][name]
        assert torch.equal(seen[name], torch.where(mask, early, torch.zeros_like(early)))
        kept += int(mask.sum())
    total = sum(mask.numel() for mask in seen["mask"].values())
    assert kept == round(0.5 * total)
    weights = [m.weight for m in task.model if isinstance(m, nn.Linear)]
    assert sum(int(w.count_nonzero()) for w in weights) == round(0.25 * total)
    for name, mask in seen["mask"].items():  # the second mask lies inside the first
        assert not bool((task.model.state_dict()[name][~mask] != 0).any())


def test_overwriting_forgets_finished_stages(tmp_path):
    stages = imp()
    run_stages(stages, Classification(toy_model()), toy_data(), tmp_path)
    stopping = Stopping(toy_model(seed=4), at=2, signum=signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_stages(stages, stopping, toy_data(), tmp_path, overwrite=True)
    whole, resumed = Classification(toy_model(seed=4)), Classification(toy_model(seed=4))
    run_stages(stages, whole, toy_data())
    run_stages(stages, resumed, toy_data(), tmp_path, resume=True)
    assert bits(resumed.model) == bits(whole.model)


def test_what_on_start_remembers_survives_a_resume(tmp_path):
    def note(model, sparsifier, memory):
        memory.values["density"] = sparsifier.density()

    stages = [Stage("half", pruned(0.5), CONFIG, on_start=note)]
    with pytest.raises(Interrupted):
        run_stages(stages, Stopping(toy_model(), 5, signal.SIGTERM), toy_data(), tmp_path)
    memory = run_stages(stages, Classification(toy_model()), toy_data(), tmp_path, resume=True)
    assert memory.values == {"density": 0.5}


def test_bad_lists_are_refused(tmp_path):
    task = Classification(toy_model())
    with pytest.raises(ConfigError, match="list of stages is empty"):
        run_stages([], task, toy_data())
    with pytest.raises(ConfigError, match="two stages are named 'a'"):
        run_stages([Stage("a"), Stage("a")], task, toy_data())
    with pytest.raises(ConfigError, match=r"a stage's name is a folder's name, not '\.\./a'"):
        run_stages([Stage("../a")], task, toy_data())


def test_changed_stages_are_refused_on_resume(tmp_path):
    stages = imp()[:2]
    run_stages(stages, Classification(toy_model()), toy_data(), tmp_path)
    changed = [stages[0], replace(stages[1], recipe=recipes.gmp())]
    with pytest.raises(ConfigError, match=r"changed argument: dense\.recipe"):
        run_stages(changed, Classification(toy_model()), toy_data(), tmp_path, resume=True)
    other = Classification(nn.Linear(8, 4))
    with pytest.raises(CheckpointError, match="of another model"):
        run_stages(stages, other, toy_data(), tmp_path, resume=True)
