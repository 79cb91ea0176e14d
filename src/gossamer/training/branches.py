"""Branches: copies of one training that start from the same state and differ in a setting, and their average.

Each runs in a folder of its own and is resumed there; one that diverges is named, and the others go on without it.
"""

from __future__ import annotations

import copy
import logging
import math
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gossamer.errors import ConfigError, GossamerError, MaskError, NumericsError, unknown
from gossamer.runs.checkpoint import load_state, save_state
from gossamer.runs.sweep import Job, sweep
from gossamer.runs.trees import load_model
from gossamer.sparsify.averaging import average, batch_norms, greedy_soup, recalibrate_bn
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.training import distributed
from gossamer.training.config import FREE, TrainConfig
from gossamer.training.loop import Data, fit
from gossamer.training.task import Batch, Task

log = logging.getLogger(__name__)
State = dict[str, Tensor]
OnStart = Callable[[Any, Sparsifier, Any], None]  # (model, sparsifier, memory), as of a stage


@dataclass(frozen=True)
class Branches:
    """Trainings that start from one state, and how one model is made of them.

    Args:
        trains: their settings. One whose seed differs from the stage's by d gets the data in the order of a seed that
            differs by d, too.
        merge: "uniform" mean, "greedy" soup chosen on the validation part, or one weight for each branch.
        recalibrate: batches (re-iterable) by which batch statistics of the mean, and of each branch before it is
            measured, are computed anew. A model that has some needs them where there are two branches or more.
        batches: how many of them; default: all.
        workers: processes; above 1, callables of the stage must be importable.
    Raises:
        ConfigError: no branch, weights that are negative, do not sum to 1 or do not fit, an unknown merge, or
            batches that can be read once only.
    """

    trains: tuple[TrainConfig, ...]
    merge: Literal["uniform", "greedy"] | tuple[float, ...] = "uniform"
    recalibrate: Iterable[Batch] | None = None
    batches: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.trains:
            raise ConfigError("branches need at least two settings, or one explicitly; got none")
        if isinstance(self.merge, str):
            if self.merge not in ("uniform", "greedy"):
                raise unknown("merge", self.merge, ("uniform", "greedy"))
        elif len(self.merge) != len(self.trains) or not _convex(self.merge):
            raise ConfigError(
                f"merge needs one weight >= 0 for each of {len(self.trains)} branches, sum 1; got {self.merge}"
            )
        if self.recalibrate is not None and iter(self.recalibrate) is self.recalibrate:
            raise ConfigError("recalibrate must be re-iterable (a loader or a list), not an iterator")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")

    def describe(self) -> dict[str, Any]:
        """What determines the outcome, as JSON values."""
        left_out = {key.rpartition(".")[2] for key in FREE}
        trains = [train.model_dump(mode="json", exclude=left_out) for train in self.trains]
        return {"trains": trains, "merge": self.merge if isinstance(self.merge, str) else list(self.merge)}


def _convex(weights: Sequence[float]) -> bool:
    return all(weight >= 0 for weight in weights) and math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6)


class Candidates(Sequence[State]):
    """Trained branches as state dicts, read from their folders one at a time; `names` are those of the branches."""

    def __init__(self, kept: Mapping[str, State | Path]) -> None:
        self.names = tuple(kept)
        self._kept = list(kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        found = self._kept[index]
        return [self._read(item) for item in found] if isinstance(found, list) else self._read(found)

    def _read(self, item: State | Path) -> State:
        return load_state(item)[0]["model"] if isinstance(item, Path) else item


def train_branches(
    branches: Branches,
    base: TrainConfig,
    task: Task,
    data: Data,
    recipe: Recipe,
    folder: Path | None,
    on_start: OnStart | None = None,
    memory: Any = None,
) -> tuple[dict[str, Any], Candidates]:
    """Train all branches from `task.model` as it is, and put what becomes of them into it.

    Args:
        base: settings of the stage; seeds of branches count from its seed. folder: of the branches; None keeps them
            in memory. on_start: as of a stage; it must only read `memory`.
    Returns:
        {"branches": results by name, "diverged": reasons by name, "chosen": names, "density", "val", "test"} and the
        candidates.
    Raises:
        ConfigError: batch statistics without `recalibrate`, a greedy merge without validation data.
        NumericsError: all branches diverged. MaskError: branches with different masks (the first layer is named).
    """
    _check(branches, task, data)
    job = partial(_train, base=base, task=task, data=data, recipe=recipe, on_start=on_start, memory=memory)
    names = [f"branch-{number}" for number in range(len(branches.trains))]
    configs = dict(zip(names, branches.trains, strict=True))
    with _place(folder, branches.workers) as place:
        results = _run(job, configs, place, branches.workers)
        diverged = {name: result["diverged"] for name, result in results.items() if "diverged" in result}
        for name, reason in diverged.items():
            log.warning("%s diverged and is left out: %s", name, reason)
        alive = [name for name in names if name not in diverged]
        if not alive:
            raise NumericsError(f"all {len(names)} branches diverged; {names[0]}: {diverged[names[0]]}")
        kept = {name: results[name].pop("state", None) or _kept(place, name, folder is not None) for name in alive}
    masks = _common_masks({name: masks for name, (_, masks) in kept.items()})
    candidates = Candidates({name: state for name, (state, _) in kept.items()})
    for name, state in zip(alive, candidates, strict=True):
        results[name] |= _install(branches, task, data, state)
    merged, chosen = _merge(branches, task, data, candidates, names)
    result = _install(branches, task, data, merged)
    task.masks = masks
    density = results[alive[0]]["density"]
    return {"branches": results, "diverged": diverged, "chosen": chosen, "density": density, **result}, candidates


def clear_branches(folder: Path) -> None:
    """Remove the branches that an earlier run left in a stage's folder."""
    for old in folder.glob("branch-*"):
        if old.is_dir() and old.name.removeprefix("branch-").isdigit():
            shutil.rmtree(old)


def _check(branches: Branches, task: Task, data: Data) -> None:
    if len(branches.trains) > 1 and branches.recalibrate is None and batch_norms(task.model):
        raise ConfigError(
            "an average of models with batch normalisation needs new batch statistics: pass recalibrate=data.train"
        )
    if branches.merge == "greedy" and data.val is None:
        raise ConfigError("a greedy soup is chosen on the validation part, and there is none: load data with val > 0")
    if branches.workers > 1 and distributed.world() > 1:
        raise ConfigError("branches run one after the other in a data-parallel training: set workers = 1")


@contextmanager
def _place(folder: Path | None, workers: int) -> Iterator[Path | None]:
    """The folder, or a temporary one where processes need one to hand over their results."""
    if folder is not None or workers == 1:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gossamer-") as place:
        yield Path(place)


def _run(
    job: Callable[..., dict[str, Any]], configs: Mapping[str, TrainConfig], place: Path | None, workers: int
) -> dict[str, dict[str, Any]]:
    dumps = {name: train.model_dump(mode="json") for name, train in configs.items()}
    if workers == 1 or len(configs) == 1:
        return {name: job(dump, place and place / name, "cpu") for name, dump in dumps.items()}
    assert place is not None  # `_place` gives one to processes
    _check_importable(job)
    swept = sweep([Job(name, dump) for name, dump in dumps.items()], job, place, ("cpu",) * workers)
    if swept.failures:
        raise GossamerError(f"branches failed: {swept.failures}; see error.txt in their folders in {place}")
    return swept.results


def _check_importable(job: Callable[..., dict[str, Any]]) -> None:
    """Raise ConfigError where a process of its own cannot be handed the task, the data or a callable."""
    try:
        ForkingPickler.dumps(job)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ConfigError(
            "branches in processes need a task, data and callables that are defined at the top of a module "
            f"({error}); define them there, or set workers = 1"
        ) from error


def _train(
    config: dict[str, Any],
    folder: Path | None,
    device: str,
    *,
    base: TrainConfig,
    task: Task,
    data: Data,
    recipe: Recipe,
    on_start: OnStart | None,
    memory: Any,
) -> dict[str, Any]:
    """One branch: trains a copy of the task. In memory the result holds its "state"."""
    task, train = copy.deepcopy(task), TrainConfig(**config)  # in a process of its own the weights are shared

    def start(sparsifier: Sparsifier) -> None:
        if on_start is not None:
            on_start(task.model, sparsifier, memory)
            sparsifier.enforce()

    run = folder / "run" if folder is not None else None
    try:
        shifted = _reseeded(data, train.seed - base.seed)
        result = fit(task, shifted, recipe, train, run=run, resume=True, on_start=start)
    except NumericsError as error:
        return {"diverged": str(error)}
    state = dict(task.model.state_dict())
    if folder is None:
        return result | {"state": (state, task.masks)}
    if distributed.rank() == 0:
        save_state(folder / "trained", {"model": state})
        save_state(folder / "masks", {"masks": task.masks})
    distributed.gather(None)  # the others wait for the files
    return result


def _kept(place: Path | None, name: str, stays: bool) -> tuple[State | Path, State]:
    """What a branch left in its folder: its state, or where that lies if the folder stays, and its masks."""
    assert place is not None
    path = place / name / "trained"
    return (path if stays else load_state(path)[0]["model"]), load_state(place / name / "masks")[0]["masks"]


@dataclass(frozen=True)
class _View:
    """A data set with other training batches."""

    train: Any
    val: Any
    test: Any


def _reseeded(data: Data, offset: int) -> Data:
    if not offset:
        return data
    if not hasattr(data.train, "reseeded"):
        raise ConfigError(
            "branches of different seeds need training data with reseeded(seed), as gossamer.data.Batches has"
        )
    return _View(data.train.reseeded(data.train.seed + offset), data.val, data.test)


def _common_masks(found: Mapping[str, State]) -> State:
    """The masks of all branches. Raises MaskError where they differ."""
    (first, base), *others = found.items()
    for name, masks in others:
        for layer in masks:
            differing = int((masks[layer] != base[layer]).sum())
            if differing:
                raise MaskError(
                    f"{layer}: the masks of {name} and {first} differ in {differing} of {masks[layer].numel()} "
                    "entries; average models of one mask (set the mask before they branch)"
                )
    return {layer: mask.clone() for layer, mask in base.items()}


def _install(branches: Branches, task: Task, data: Data, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Load a state, recalibrate it, and measure it on the validation and test parts."""
    load_model(task.model, state)
    if branches.recalibrate is not None and batch_norms(task.model):
        recalibrate_bn(task.model, branches.recalibrate, branches.batches)
    parts = {part: getattr(data, part) for part in ("val", "test")}
    return {part: None if batches is None else task.evaluate(batches) for part, batches in parts.items()}


def _merge(
    branches: Branches, task: Task, data: Data, candidates: Candidates, names: Sequence[str]
) -> tuple[State, list[str]]:
    """The merged state and the names of what went into it. The masks are equal by now, zeros may be chance."""
    if branches.merge == "uniform":
        return average(candidates, require_same_mask=False), list(candidates.names)
    if branches.merge == "greedy":

        def score(state: State) -> float:
            return _install(branches, task, data, state)["val"][task.score] * (1 if task.larger else -1)

        merged, chosen = greedy_soup(candidates, score, require_same_mask=False)
        return merged, [candidates.names[index] for index in chosen]
    weights = dict(zip(names, branches.merge, strict=True))
    shares = [float(weights[name]) for name in candidates.names]
    if not sum(shares):
        raise NumericsError(f"every branch that has a weight diverged; left are {candidates.names}")
    return average(candidates, shares, require_same_mask=False), list(candidates.names)
