"""Methods that are a sequence of trainings: a list of stages, each resumable, with fresh optimisers.

Iterative pruning with rewinding, soups, slimming and multistage training are such lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gossamer.errors import CheckpointError, ConfigError
from gossamer.runs.checkpoint import delete_state, load_state, save_state
from gossamer.runs.folder import RunFolder
from gossamer.runs.rng import seed_all
from gossamer.runs.trees import Tree, load_model
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.training import distributed
from gossamer.training.branches import Branches, Candidates, clear_branches, train_branches
from gossamer.training.config import FREE, TrainConfig
from gossamer.training.loop import Data, fit, open_run
from gossamer.training.task import Task


@dataclass
class Memory:
    """What the stages hand on: `values` is a tree of tensors and JSON values by name, `results` is by stage.

    `candidates` are the branches of the latest stage that had some and was run by this process.
    """

    values: dict[str, Tree] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    candidates: Candidates | None = None


@dataclass(frozen=True)
class Stage:
    """One training in a sequence. All callables must do the same when they are called again from the same state.

    Attributes:
        name: of its folder and of its result. recipe, train: what `fit` gets; train=None does not train.
            A callable (model, memory) -> Recipe decides by what earlier stages found.
        branches: train copies that differ in a setting, and go on with their average.
        surgery: (model, memory) -> model with other shapes; called first, and called again when a later stage is
            resumed, to rebuild the model.
        on_enter: (model, memory), before the masks are set: rewind, average, prune.
        on_start: (model, sparsifier, memory), after they are set: rewinding under a mask that trained weights chose.
            Both are called again when the stage is resumed, before its checkpoint is loaded.
        on_exit: (model, memory), after the training: remember weights or masks.
    """

    name: str
    recipe: Recipe | Callable[[nn.Module, Memory], Recipe] = field(default_factory=Recipe)
    train: TrainConfig | None = None
    branches: Branches | None = None
    surgery: Callable[[nn.Module, Memory], nn.Module] | None = None
    on_enter: Callable[[nn.Module, Memory], None] | None = None
    on_start: Callable[[nn.Module, Sparsifier, Memory], None] | None = None
    on_exit: Callable[[nn.Module, Memory], None] | None = None


def run_stages(
    stages: Sequence[Stage],
    task: Task,
    data: Data,
    run: RunFolder | str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    memory: Memory | None = None,
    progress: bool = False,
) -> Memory:
    """Run the stages in order on one model; a resumed run goes on in the stage where it was stopped.

    Args:
        task: its model goes through all stages, and is replaced where a stage operates on it.
        run: a folder with one run folder for each stage, and the state after each; None keeps nothing.
        memory: to begin with; filled, and returned.
    Raises:
        ConfigError: two stages of one name, changed stages on resume. CheckpointError, NumericsError, Interrupted: as
            `fit` does.
    """
    _check_names(stages)
    memory = memory if memory is not None else Memory()
    distributed.join(cpu=any(stage.train is not None and stage.train.device == "cpu" for stage in stages))
    if isinstance(run, str | Path):
        run = open_run(run, describe(stages), resume=resume, overwrite=overwrite, free=_free(stages))
    if run is not None and (overwrite or not resume):
        _forget(stages, run)
    done = _restore(stages, task, memory, run) if run is not None and resume else 0
    for number in range(done, len(stages)):
        stage = stages[number]
        folder = _folder(run, number, stage) if run is not None else None
        _run_stage(stage, task, data, memory, folder, resume, progress)
        if run is not None and distributed.rank() == 0:
            tree = {"model": dict(task.model.state_dict()), "values": memory.values, "results": memory.results}
            save_state(_end_path(run, number, stage), tree, {"stage": stage.name})
    if run is not None and distributed.rank() == 0:
        run.write_result(memory.results)
        run.set_status("done", sum(stage.train.steps for stage in stages if stage.train))
    return memory


def describe(stages: Sequence[Stage]) -> dict[str, Any]:
    """The stages as settings, to compare on resume."""
    return {
        stage.name: {
            "recipe": stage.recipe.to_yaml() if isinstance(stage.recipe, Recipe) else repr(stage.recipe),
            "train": stage.train.model_dump(mode="json") if stage.train else None,
            **({"branches": stage.branches.describe()} if stage.branches else {}),
        }
        for stage in stages
    }


def _run_stage(
    stage: Stage,
    task: Task,
    data: Data,
    memory: Memory,
    folder: Path | None,
    resume: bool,
    progress: bool,
) -> None:
    seed_all(stage.train.seed if stage.train else 0)
    if stage.surgery is not None:
        task.model = stage.surgery(task.model, memory)
    if stage.on_enter is not None:
        stage.on_enter(task.model, memory)
    recipe = stage.recipe if isinstance(stage.recipe, Recipe) else stage.recipe(task.model, memory)
    if stage.train is not None and stage.branches is not None:
        memory.results[stage.name], memory.candidates = train_branches(
            stage.branches, stage.train, task, data, recipe, folder, stage.on_start, memory
        )
    elif stage.train is not None:

        def start(sparsifier: Sparsifier) -> None:
            if stage.on_start is not None:
                stage.on_start(task.model, sparsifier, memory)
                sparsifier.enforce()

        memory.results[stage.name] = fit(
            task,
            data,
            recipe,
            stage.train,
            run=folder,
            resume=resume,
            overwrite=not resume,
            on_start=start,
            progress=progress,
        )
    if stage.on_exit is not None:
        stage.on_exit(task.model, memory)


def _restore(stages: Sequence[Stage], task: Task, memory: Memory, run: RunFolder) -> int:
    """Bring model and memory to the end of the last finished stage; returns how many are finished."""
    done = 0
    while done < len(stages) and _end_path(run, done, stages[done]).exists():
        done += 1
    for number in range(done):
        stage = stages[number]
        if stage.surgery is not None:
            task.model = stage.surgery(task.model, memory)
        if number == done - 1 or stages[number + 1].surgery is not None:
            _load_end(run, number, stage, task, memory)
    return done


def _forget(stages: Sequence[Stage], run: RunFolder) -> None:
    """Remove what an earlier run left, so that a later resume cannot take it for this run's."""
    if distributed.rank() == 0:
        for number, stage in enumerate(stages):
            delete_state(_end_path(run, number, stage))
            RunFolder(_folder(run, number, stage)).clear()
            clear_branches(_folder(run, number, stage))


def _load_end(run: RunFolder, number: int, stage: Stage, task: Task, memory: Memory) -> None:
    path = _end_path(run, number, stage)
    tree, meta = load_state(path)
    if meta.get("stage") != stage.name:
        raise CheckpointError(f"{path} is of the stage {meta.get('stage')!r}, not {stage.name!r}")
    load_model(task.model, tree["model"])
    memory.values.clear()
    memory.values.update(tree["values"])
    memory.results.clear()
    memory.results.update(tree["results"])


def _folder(run: RunFolder, number: int, stage: Stage) -> Path:
    return run.path / f"{number:02d}-{stage.name}"


def _end_path(run: RunFolder, number: int, stage: Stage) -> Path:
    return run.path / f"{number:02d}-{stage.name}-end.json"


def _check_names(stages: Sequence[Stage]) -> None:
    if not stages:
        raise ConfigError("a list of stages is empty")
    names: set[str] = set()
    for stage in stages:
        if stage.name in names:
            raise ConfigError(f"two stages are named {stage.name!r}")
        if not stage.name or stage.name.startswith(".") or Path(stage.name).name != stage.name:
            raise ConfigError(f"a stage's name is a folder's name, not {stage.name!r}")
        names.add(stage.name)


def _free(stages: Sequence[Stage]) -> list[str]:
    return [f"{stage.name}.{key}" for stage in stages for key in FREE]
