"""The paper's comparison for one seed: the dense parent, a random sub-network, and the best of K at initialisation.

All three start from one draw of the parent's weights, see the same batches in the same order and train equally long.
`run_seed` is a function of its arguments alone, so that seeds run in processes of their own (`job`) and are resumed.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Batches, Dataset, load
from ..errors import ConfigError, unknown
from ..models import build
from ..models.zoo import MODELS
from ..recipes.static import dense
from ..sparsify.allocation import check_density
from ..training.config import OptimConfig, TrainConfig
from ..training.loop import fit
from ..training.task import Classification
from .evaluator import Evaluator
from .initial import SCORES, AtInit
from .masks import ALLOCATIONS, Masks, MaskSpace, apply_masks, densities, hold
from .random_search import SearchResult, random_search
from .space import Architecture

SPACES = ("nodes", "weights", "nm")
TRAINED = "trained"
ARMS = ("dense", "random", "searched")


@dataclass(frozen=True)
class Study:
    """What one comparison consists of; JSON values only.

    Args:
        data, data_options: a data set by its name in `data.DATASETS`.
        model, model_options: the parent by its name in `models.MODELS` or an import path.
        space: "nodes" (the paper's), "weights", or "nm" (n of m, `sparsity` is then n / m's complement).
        sparsity: of the nodes of each layer, or of all weights. allocation: of "weights".
        draws: K. score: of SCORES, or "trained": the loss after a training of `score_steps`, on the validation part
            where there is one, else on the test part (an oracle, for a positive control).
        score_samples: training images that the scores at initialisation see.
        init: "default" (torch's) or "he" (normal, fan-in). fan_in: "dense" or "surviving", see `apply_masks`.
        standardise: every input feature gets mean 0 and deviation 1 on the training part (data that fit in memory).
        steps, optim: of every training; batch size is a data option.
    """

    data: str = "digits"
    data_options: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 50})
    model: str = "mlp"
    model_options: Mapping[str, Any] = field(default_factory=lambda: {"hidden": [256, 256], "norm": False})
    space: str = "nodes"
    sparsity: float = 0.9
    allocation: str = "erk"
    draws: int = 200
    score: str = "loss"
    score_samples: int = 1000
    score_steps: int = 300
    init: str = "default"
    fan_in: str = "dense"
    standardise: bool = False
    steps: int = 300
    optim: Mapping[str, Any] = field(
        default_factory=lambda: {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant"}
    )
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise unknown("space", self.space, SPACES)
        if self.score not in (*SCORES, TRAINED):
            raise unknown("score", self.score, (*SCORES, TRAINED))
        if self.init not in ("default", "he"):
            raise unknown("init", self.init, ("default", "he"))
        if self.allocation not in ALLOCATIONS:
            raise unknown("allocation", self.allocation, ALLOCATIONS)
        if self.draws < 1:
            raise ConfigError(f"random search needs at least 1 draw, got {self.draws}")
        if self.score_samples < 1:
            raise ConfigError(f"score_samples must be at least 1, got {self.score_samples}")
        check_density(1 - self.sparsity)

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Study:
        """Raises ConfigError for a key that is no field, with the nearest known ones."""
        known = [f.name for f in fields(Study)]
        for key in values:
            if key not in known:
                raise unknown("setting of a search", key, known)
        return Study(**values)

    def protocol(self) -> dict[str, Any]:
        """What arms of one comparison must share."""
        return self.as_json()


def dataset(study: Study, seed: int) -> Dataset:
    """The study's data with batches in the order of a seed."""
    data = load(study.data, **{"seed": seed, **study.data_options})
    if not study.standardise:
        return data
    x = data.train.tensors()[0]
    mean, deviation = x.mean(0), x.std(0)
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones(()))  # a feature that never changes

    def changed(batches: Batches) -> Batches:
        inputs, *others = batches.tensors()
        made = [(inputs - mean) / deviation, *others]
        return Batches(made, batches.batch_size, seed=batches.seed, shuffle=batches.shuffle)

    return replace(data, train=changed(data.train), val=data.val and changed(data.val), test=changed(data.test))


def parent(study: Study, data: Dataset, seed: int) -> nn.Module:
    """The over-parameterised network with the weights that every arm inherits."""
    options = {"shape": data.shape, "classes": data.classes}
    if ":" in study.model:
        options = {}
    elif study.model in MODELS:
        known = inspect.signature(MODELS[study.model]).parameters
        options = {key: value for key, value in options.items() if key in known}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(study.model, **options, **study.model_options)
        if study.init == "he":
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                    nn.init.kaiming_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
    return model


def mask_space(study: Study, model: nn.Module, data: Dataset) -> MaskSpace:
    """The space that the study names, on this parent."""
    if study.space == "nodes":
        return MaskSpace.nodes(model, data.test.batch(0)[0][:1], study.sparsity)
    if study.space == "weights":
        return MaskSpace.weights(model, study.sparsity, study.allocation)
    for m in (4, 8, 16):
        n = (1 - study.sparsity) * m
        if abs(n - round(n)) < 1e-9 and n >= 1:
            return MaskSpace.nm(model, round(n), m)
    raise ConfigError(f"sparsity {study.sparsity} is no n:m with m of 4, 8 or 16; take 0.5, 0.75, 0.875 or 0.9375")


def train(
    model: nn.Module, masks: Masks, data: Dataset, study: Study, seed: int, steps: int, folder: Path | None = None
) -> dict[str, Any]:
    """Train a copy of `model` under masks. Returns {"accuracy", "loss", "curve", "model", "seconds"}.

    The curve is measured once an epoch on the test part and chooses nothing; the last weights are reported.
    """
    started = copy.deepcopy(model)
    apply_masks(started, masks, fan_in=study.fan_in)
    task = Classification(started)
    watched = replace(data, val=data.test)
    config = TrainConfig(
        steps=steps,
        seed=seed,
        optim=OptimConfig(**study.optim),
        validate_every=min(steps, len(data.train)),
        log_every=0 if folder is None else 20,
        checkpoint_every=0 if folder is None else 500,
        device=study.device,  # type: ignore[arg-type]
    )
    with hold(started, masks):
        found = fit(task, watched, dense(), config, run=folder, resume=folder is not None)
    return {
        "accuracy": found["test"]["accuracy"],
        "loss": found["test"]["loss"],
        "curve": [(row["step"], row["accuracy"]) for row in found["curve"]],
        "seconds": found["seconds"],
        "model": task.model,
    }


def search(study: Study, model: nn.Module, space: MaskSpace, data: Dataset, seed: int) -> SearchResult:
    """Random search by the study's score, on this parent."""
    if study.score == TRAINED:
        return random_search(space.space, _TrainedLoss(study, model, space, data, seed), study.draws, seed=seed)
    scorer = _at_init(study, model, space, data)
    evaluator = Evaluator(space.space, scorer, study.draws, goal=scorer.goal, allow_nan=True)
    return random_search(space.space, draws=study.draws, seed=seed, evaluator=evaluator)


def _at_init(study: Study, model: nn.Module, space: MaskSpace, data: Dataset, name: str | None = None) -> AtInit:
    """Scores on the first training samples, in the order of the source."""
    count = min(study.score_samples, data.train.samples)
    parts = data.train.source[torch.arange(count)]
    x, y = parts[0], parts[1]
    if data.train.transform is not None:
        x = data.train.transform(x, torch.Generator().manual_seed(0))
    pieces = list(zip(x.split(1000), y.split(1000), strict=True))
    return AtInit(model, space, pieces, name or study.score, study.fan_in)


@dataclass(frozen=True)
class _TrainedLoss:
    """Score: loss after training the sub-network."""

    study: Study
    model: nn.Module
    space: MaskSpace
    data: Dataset
    seed: int

    def __call__(self, architecture: Architecture) -> float:
        held = self.data if self.data.val is None else replace(self.data, test=self.data.val)
        masks = self.space.masks(architecture)
        found = train(self.model, masks, held, self.study, self.seed, self.study.score_steps)
        return float(found["loss"])


def run_seed(
    study: Study,
    seed: int,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    choose: Callable[[SearchResult], Architecture] = lambda found: found.best.architecture,
    arms: tuple[str, ...] = ARMS,
) -> dict[str, Any]:
    """One seed of the comparison.

    Args:
        folder: of the three trainings, each resumable; None keeps nothing. choose: what the searched arm takes.
        arms: of `ARMS`.
    Returns:
        {"seed", "sparsity" (of weights), "widths", "trajectory", "scores", "architecture", "cost", arm ->
        {"accuracy", "loss", "init_loss", "curve" [(step, test accuracy)], "zeros" (weight -> counted fraction),
        "to_95", "seconds"}}; "to_95" is the first measured step at which 95 % of the dense parent's final accuracy is
        reached, None where it never is.
    """
    data = dataset(study, seed)
    model = parent(study, data, seed)
    space = mask_space(study, model, data)
    found = search(study, model, space, data, seed)
    say(f"seed {seed}: best of {len(found.evaluations)} has {study.score} {found.best.value:.4f}")
    taken = choose(found)
    chosen = {"random": found.first.architecture, "searched": taken}
    at_init = _at_init(study, model, space, data, "loss")
    row: dict[str, Any] = {"seed": seed, "widths": dict(space.widths or {}), "cost": found.cost}
    row["trajectory"] = [None if math.isnan(v) else v for v in found.trajectory]
    row["scores"] = [None if math.isnan(e.value) else e.value for e in found.evaluations]
    row["sparsity"] = {k: 1 - v for k, v in densities(model, space.masks(taken)).items()}
    for arm in arms:
        masks = space.masks(chosen[arm]) if arm in chosen else {}
        made = train(model, masks, data, study, seed, study.steps, folder / arm if folder else None)
        row[arm] = {key: value for key, value in made.items() if key != "model"}
        row[arm]["init_loss"] = at_init(chosen[arm]) if arm in chosen else None
        say(f"seed {seed}: {arm} {100 * made['accuracy']:.2f}")
        row[arm]["zeros"] = _zeros(made.pop("model"), masks)
    if "dense" in arms:
        goal = 0.95 * row["dense"]["accuracy"]
        for arm in arms:
            row[arm]["to_95"] = next((step for step, accuracy in row[arm]["curve"] if accuracy >= goal), None)
    if len(space.space.slots) <= 8 and sum(slot.width for slot in space.space.slots) <= 4096:
        row["architecture"] = space.space.describe(taken)
    return row


def _zeros(model: nn.Module, masks: Masks) -> dict[str, float]:
    """Fraction of exact zeros of every masked weight matrix of a trained network."""
    weights = {name: p for name, p in model.named_parameters() if name in masks and p.ndim > 1}
    return {name: float((p == 0).double().mean()) for name, p in weights.items()}


def job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """`run_seed` as `runs.sweep` calls it: config is {"study": fields, "seed": int}."""
    study = Study.from_json(config["study"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the parent process has said it once
        return run_seed(replace(study, device=device.partition(":")[0]), config["seed"], folder)
