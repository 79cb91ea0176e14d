"""Which N:M pattern each layer of a network gets: accuracy against density, by a GFlowNet, NSGA-II and chance.

`run_seed` is a function of its arguments alone, so that seeds run in processes of their own and are resumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..errors import ConfigError, DataError, unknown
from ..maths.pareto import front, hypervolume
from ..sparsify.groups import Select, select
from ..sparsify.patterns import NM
from .cell_study import accuracy
from .evaluator import Evaluator, Goal
from .gflownet import search_gflownet
from .gflownet.balance import Flow
from .masks import Masks, MaskSpace, densities
from .nsga import search_nsga2
from .random_search import random_search
from .slots import OneOf
from .space import Architecture, SearchSpace
from .study import Study, dataset, parent, train

ARMS = ("gflownet", "nsga2", "random")
GOALS: tuple[Goal, Goal] = ("max", "min")  # accuracy, density
WORST = (0.0, 1.0)
DENSE = "dense"


def _training() -> dict[str, Any]:
    return {
        "data": "digits",
        "data_options": {"batch_size": 64, "val": 0.2},
        "model_options": {"hidden": [32, 32, 32, 32], "norm": False},
        "init": "he",
        "fan_in": "surviving",
        "steps": 150,
        "optim": {"name": "adam", "lr": 3e-3, "weight_decay": 0.0},
        "device": "cpu",
    }


@dataclass(frozen=True)
class LayerChoice:
    """What one search consists of; JSON values only.

    Args:
        training: settings of a `Study`: data, model, steps, optimiser. The data need a validation part (`val`): the
            search sees its accuracy, the front is then measured on the test part, too.
        options: of every layer but the last: "dense" or N:M such as "2:4"; a layer gets those whose M divides it.
        budget: networks that each method may train.
        warm, fresh, updates: of the GFlowNet: random networks to begin with, new ones and optimiser steps a round.
        flow: its loss, a kind of `Flow`.
    Raises:
        ConfigError: an option that is no pattern, a budget < 1, an unknown setting.
    """

    training: Mapping[str, Any] = field(default_factory=_training)
    options: tuple[str, ...] = (DENSE, "2:4", "1:4", "1:8")
    budget: int = 60
    warm: int = 20
    fresh: int = 10
    updates: int = 60
    flow: str = "tb"

    def __post_init__(self) -> None:
        for option in self.options:
            pattern_of(option)
        if self.budget < 1:
            raise ConfigError(f"a search needs a budget of at least 1 evaluation, got {self.budget}")
        Flow(self.flow)
        self.study  # noqa: B018  # raises for an unknown setting

    @property
    def study(self) -> Study:
        """How every network is trained."""
        return Study.from_json(dict(self.training))

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> LayerChoice:
        """Raises ConfigError for a key that is no field, with the nearest known ones."""
        known = [f.name for f in fields(LayerChoice)]
        for key in values:
            if key not in known:
                raise unknown("setting of a search of layers", key, known)
        made: dict[str, Any] = {k: tuple(v) if k == "options" else v for k, v in values.items()}
        return LayerChoice(**made)


def pattern_of(option: str) -> NM | None:
    """The pattern of "2:4"; None of "dense". Raises ConfigError for anything else."""
    if option == DENSE:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", option)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"an option of a layer is {DENSE!r} or N:M such as '2:4', not {option!r}")
    return NM(int(found[1]), int(found[2]))


def layer_space(model: nn.Module, options: Sequence[str]) -> MaskSpace:
    """Every layer but the last has one of the options; its largest initial weights survive."""
    groups = select(model, Select(last_dense=True))
    parameters = dict(model.named_parameters())
    fitting = {g.name: tuple(o for o in options if _fits(o, g.shape)) for g in groups}

    def make(architecture: Architecture) -> Masks:
        masks = {}
        for group, value in zip(groups, architecture, strict=True):
            weight = parameters[group.name].detach()
            pattern = pattern_of(fitting[group.name][int(value)])  # type: ignore[arg-type]
            masks[group.name] = torch.ones_like(weight).bool() if pattern is None else pattern.project(weight.abs())
        return masks

    slots = tuple(OneOf(name.removesuffix(".weight"), allowed) for name, allowed in fitting.items())
    return MaskSpace(SearchSpace(slots, name="the space of N:M choices"), make)


def _fits(option: str, shape: tuple[int, ...]) -> bool:
    pattern = pattern_of(option)
    return pattern is None or shape[1] % pattern.m == 0


def prepare(choice: LayerChoice, seed: int) -> tuple[Dataset, nn.Module, MaskSpace]:
    """Data, parent and space of a seed.

    Raises:
        DataError: the data have no validation part. ConfigError: a single architecture is left.
    """
    data = dataset(choice.study, seed)
    if data.val is None:
        raise DataError(f"{choice.study.data}: no validation part to score networks on; give data_options a 'val'")
    model = parent(choice.study, data, seed)
    return data, model, layer_space(model, choice.options)


def run_seed(
    choice: LayerChoice,
    seed: int,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    arms: Sequence[str] = ARMS,
) -> dict[str, Any]:
    """All searches of one seed at equal budget; a network that two of them ask for is trained once.

    Args:
        folder: keeps every trained network's figures, and the search goes on behind them.
    Returns:
        {"seed", "slots", arm -> {"evaluations": [[labels, validation accuracy, density, test accuracy], ...], "front":
        indices of those that no other dominates, "area": under the front after each evaluation}}.
    """
    data, model, space = prepare(choice, seed)
    known = Evaluator(
        space.space,
        _Trained(choice.study, data, model, space, seed),
        space.space.size,
        goal=("max", "min", "max"),
        file=None if folder is None else folder / "trained.json",
    )
    row: dict[str, Any] = {"seed": seed, "slots": [slot.name for slot in space.space.slots]}
    for arm in arms:
        evaluator = Evaluator(space.space, lambda a: known.evaluate(a).values[:2], choice.budget, goal=GOALS)
        _search(arm, evaluator, choice, seed)
        seen = [known.evaluate(e.architecture) for e in evaluator.history]
        points = [(e.values[0], e.values[1]) for e in seen]
        row[arm] = {
            "evaluations": [[*space.space.describe(e.architecture).values(), *e.values] for e in seen],
            "front": front(points, (True, False)),
            "area": [hypervolume(points[: i + 1], WORST, (True, False)) for i in range(len(points))],
        }
        say(f"seed {seed}, {arm}: area {row[arm]['area'][-1]:.4f} after {len(points)}")
    return row


def _search(arm: str, evaluator: Evaluator, choice: LayerChoice, seed: int) -> None:
    if arm == "gflownet":
        rounds: dict[str, Any] = {"warm": choice.warm, "fresh": choice.fresh, "updates": choice.updates}
        search_gflownet(evaluator, flow=Flow(choice.flow), seed=seed, **rounds)
    elif arm == "nsga2":
        search_nsga2(evaluator, seed=seed)
    elif arm == "random":
        random_search(evaluator.space, draws=4 * choice.budget, evaluator=evaluator, seed=seed)
    else:
        raise unknown("search", arm, ARMS)


@dataclass(frozen=True)
class _Trained:
    """Score: (validation accuracy, density of the masked layers, test accuracy) after training."""

    study: Study
    data: Dataset
    model: nn.Module
    space: MaskSpace
    seed: int

    def __call__(self, architecture: Architecture) -> tuple[float, float, float]:
        masks = self.space.masks(architecture)
        assert self.data.val is not None  # `prepare` has looked
        held = replace(self.data, test=self.data.val)
        made = train(self.model, masks, held, self.study, self.seed, self.study.steps)
        test = accuracy(made["model"], self.data.test)
        return made["accuracy"], densities(self.model, masks)["total"], test


def job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """`run_seed` as `runs.sweep` calls it: config is {"choice": fields, "seed": int, "arms": names}."""
    choice = LayerChoice.from_json(config["choice"])
    where = {**choice.training, "device": device.partition(":")[0]}
    return run_seed(replace(choice, training=where), config["seed"], folder, arms=config["arms"])
