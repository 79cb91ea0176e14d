"""Sparse model soups: prune, train several copies under the one mask, average them, prune again; and what they are
compared with.

Iterative magnitude pruning is `sms` with one branch; m times longer retraining is `sms` with one branch and
`retrain_steps` m times as large.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..maths.schedules import geometric_densities
from ..sparsify.allocation import Allocation, Global, budget
from ..sparsify.averaging import average
from ..sparsify.groups import Select, select
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Magnitude
from ..sparsify.sparsifier import Sparsifier
from ..sparsify.updates import Freeze, SetTo
from ..training.branches import Branches
from ..training.config import TrainConfig
from ..training.optim import adaptive_factor, retraining
from ..training.stages import Memory, Stage
from ..training.task import Batch
from .procedures import magnitude_mask
from .static import dense

Merge = Literal["uniform", "greedy"] | tuple[float, ...]
State = Mapping[str, Tensor]


def variants(
    train: TrainConfig, m: int = 3, vary: Mapping[str, Sequence[Any]] | None = None
) -> tuple[TrainConfig, ...]:
    """Settings of the branches: `train` with other values of one setting or of several, side by side.

    Args:
        m: seeds train.seed, train.seed + 1, ... where `vary` is None; a seed changes the order of the data.
        vary: dotted setting -> one value for each branch, such as {"optim.weight_decay": (1e-4, 5e-4)}.
    Raises:
        ConfigError: m < 1, an unknown setting (the nearest is named), bad values, or lists of unequal length.

    >>> [train.steps for train in variants(TrainConfig(), vary={"steps": (100, 200)})]
    [100, 200]
    """
    if vary is None:
        if m < 1:
            raise ConfigError(f"a soup needs at least two models, or m = 1 for plain iterative pruning; got m = {m}")
        vary = {"seed": range(train.seed, train.seed + m)}
    lengths = {name: len(values) for name, values in vary.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"every varied setting needs one value for each branch, got {lengths}")
    return tuple(_changed(train, dict(zip(vary, row, strict=True))) for row in zip(*vary.values(), strict=True))


def _changed(train: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    values = train.model_dump(mode="json")
    for name, value in settings.items():
        *path, last = name.split(".")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return TrainConfig(**values)


@dataclass(frozen=True)
class _Before:
    """Notes the norm of the weights that the mask is about to thin out, and refuses a goal that is reached."""

    select: Select
    goal: float | None = None  # density

    def __call__(self, model: nn.Module, memory: Memory) -> None:
        parameters = dict(model.named_parameters())
        names = dict.fromkeys(member.name for group in select(model, self.select) for member in group.members)
        weights = [parameters[name].detach() for name in names]
        kept, total = sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)
        if self.goal is not None and kept <= budget(self.goal, total):
            raise ConfigError(
                f"the model is {1 - kept / total:.2%} sparse already; the goal {1 - self.goal:.2%} is not above that"
            )
        norm = math.sqrt(sum(float(w.double().square().sum()) for w in weights))
        memory.values["before"] = {"norm": norm, "kept": kept}


@dataclass(frozen=True)
class _AdaptRate:
    """Multiplies the learning rate by `adaptive_factor`. `steps`: of the dense training."""

    steps: int

    def __call__(self, model: nn.Module, sparsifier: Sparsifier, memory: Memory) -> None:
        before: Any = memory.values["before"]
        parameters, masks = dict(model.named_parameters()), sparsifier.entry_masks
        norm = math.sqrt(sum(float(parameters[name].detach().double().square().sum()) for name in masks))
        gone = 1 - sum(int(mask.sum()) for mask in masks.values()) / before["kept"]
        factor = adaptive_factor(before["norm"], norm, gone, sparsifier.steps, self.steps)
        for group in sparsifier.optimizer.param_groups:
            group["lr"] *= factor


def sms(
    sparsity: float,
    phases: int,
    train: TrainConfig,
    *,
    m: int = 3,
    vary: Mapping[str, Sequence[Any]] | None = None,
    retrain_steps: int | None = None,
    schedule: str = "llr",
    merge: Merge = "uniform",
    recalibrate: Iterable[Batch] | None = None,
    batches: int | None = None,
    workers: int = 1,
    allocation: Allocation = Global(),
    select: Select = Select(),
    pretrained: bool = False,
) -> list[Stage]:
    """Sparse model soups: train, then in every phase prune, train m copies, and average them (Zimmer et al. 2024).

    m = 1 is iterative magnitude pruning with fine-tuning: the weights are those of `imp(..., rewinding=False)`.

    Args:
        sparsity: after the last phase; every phase keeps the same fraction q = (1 - sparsity)^(1/phases) of the rest.
        train: of the dense training. retrain_steps: of each phase; default: as many as the dense training.
        m, vary: how the branches differ, see `variants`. merge, recalibrate, batches, workers: see `Branches`.
        schedule: of the retraining's learning rate, see `training.optim.retraining`; the authors' default "llr".
        pretrained: the model is trained already: no dense training; `train` still gives the rates.
    Raises:
        ConfigError: phases < 1, sparsity out of range or not above that of the model (when run), bad branches.
    """
    steps = train.steps if retrain_steps is None else retrain_steps
    optim = retraining(schedule, train.optim, steps, train.steps)
    again = train.model_copy(update={"steps": steps, "optim": optim})
    branches = Branches(variants(again, m, vary), merge, recalibrate, batches, workers)
    adapt = _AdaptRate(train.steps) if schedule == "allr" else None
    stages = [] if pretrained else [Stage("dense", dense(), train)]
    for number, density in enumerate(geometric_densities(1 - sparsity, phases), start=1):
        before = _Before(select, 1 - sparsity if number == 1 else None)
        recipe = magnitude_mask(f"imp-{number}", density, allocation, select)
        stages.append(Stage(f"phase-{number}", recipe, again, branches, on_enter=before, on_start=adapt))
    return stages


def soup_after(
    recipe: Recipe,
    train: TrainConfig,
    *,
    retrain_steps: int,
    m: int = 3,
    vary: Mapping[str, Sequence[Any]] | None = None,
    schedule: str = "llr",
    merge: Merge = "uniform",
    recalibrate: Iterable[Batch] | None = None,
    batches: int | None = None,
    workers: int = 1,
) -> list[Stage]:
    """A soup at the end of sparse training: `recipe` (GMP, GraNet, ...), then m branches under its final mask.

    Arguments and errors as in `sms`.
    """
    optim = retraining(schedule, train.optim, retrain_steps, train.steps)
    again = train.model_copy(update={"steps": retrain_steps, "optim": optim})
    branches = Branches(variants(again, m, vary), merge, recalibrate, batches, workers)
    frozen = Recipe("frozen", recipe.select, updates=(Freeze(),))
    return [Stage("sparse", recipe, train), Stage("soup", frozen, again, branches)]


# --------------------------------------------------------------------------- what soups are compared with


def best_of(scores: Sequence[float]) -> int:
    """Which model has the highest held-out score; the first of equals."""
    if not scores:
        raise ConfigError("the best of no models")
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def average_of_runs(models: Sequence[nn.Module]) -> nn.Module:
    """IMP-AVG: the mean of independently pruned models, with the union of their masks, as a new model.

    Recalibrate its batch statistics. Raises as `average` does, and ShapeError for models of different types.
    """
    for name, first in models[0].state_dict().items():
        for number, model in enumerate(models):
            value = model.state_dict().get(name)
            if value is not None and value.dtype != first.dtype:
                raise ShapeError(f"{name} is {value.dtype} in model {number}, {first.dtype} in model 0; cast one first")
    mean = copy.deepcopy(models[0])
    mean.load_state_dict(average(models, require_same_mask=False))
    return mean


def reprune(
    model: nn.Module, sparsity: float, allocation: Allocation = Global(), select: Select = Select()
) -> nn.Module:
    """IMP-RePrune: `model` pruned once more by magnitude, without training, as a new model. Recalibrate it."""
    pruned = copy.deepcopy(model)
    recipe = Recipe("reprune", select, updates=(SetTo(Magnitude(), 1 - sparsity, allocation),))
    Sparsifier(pruned, torch.optim.SGD(pruned.parameters(), 0.1), recipe, steps=1).finalize()
    return pruned


def soft_vote(logits: Iterable[Tensor]) -> Tensor:
    """The prediction ensemble: logarithms of the mean probabilities of several models.

    Args:
        logits: (n, classes) of each model.
    Raises:
        ConfigError: no model. ShapeError: unequal shapes.
    """
    total: Tensor | None = None
    count = 0
    for part in logits:
        if total is not None and part.shape != total.shape:
            raise ShapeError(f"logits of one ensemble need one shape, got {tuple(part.shape)}, {tuple(total.shape)}")
        total = part.double().softmax(1) if total is None else total + part.double().softmax(1)
        count += 1
    if total is None:
        raise ConfigError("an ensemble needs at least one model")
    return (total / count).log()


def spread(states: Sequence[State], names: Iterable[str] | None = None) -> dict[str, float]:
    """How far candidates lie apart: over `names` (parameters; default: all floating tensors of two dimensions or more).

    Returns:
        {"distance": mean pairwise L2 distance, "angle": mean pairwise angle in degrees, "nearest", "farthest":
        distances to the barycentre}.
    Raises:
        ConfigError: fewer than two candidates.
    """
    if len(states) < 2:
        raise ConfigError(f"a spread needs at least two models, got {len(states)}")
    first = states[0]
    chosen = list(names) if names is not None else [n for n, v in first.items() if v.is_floating_point() and v.ndim > 1]
    points = torch.stack([torch.cat([state[name].flatten().double() for name in chosen]) for state in states])
    pairs = list(combinations(range(len(points)), 2))
    cosines = torch.stack([torch.cosine_similarity(points[i], points[j], dim=0) for i, j in pairs])
    gaps = torch.stack([(points[i] - points[j]).norm() for i, j in pairs])
    radii = (points - points.mean(0)).norm(dim=1)
    angles = cosines.clamp(-1, 1).acos().rad2deg()
    return {
        "distance": float(gaps.mean()),
        "angle": float(angles.mean()),
        "nearest": float(radii.min()),
        "farthest": float(radii.max()),
    }
