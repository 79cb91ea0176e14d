"""Prune first, then unlearn: sparse networks by the ways that the paper compares, with their masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...data.dataset import Batches, Dataset
from ...errors import ConfigError, unknown
from ...recipes.procedures import imp
from ...recipes.static import grasp, random, snip, synflow
from ...sparsify.groups import Select
from ...sparsify.recipe import Recipe
from ...training.config import OptimConfig, TrainConfig
from ...training.stages import Stage, run_stages
from ...training.task import Classification
from .split import as_batches

_BEFORE: dict[str, Callable[[float], Recipe]] = {
    "synflow": synflow,
    "snip": snip,
    "grasp": grasp,
    "random": random,
}  # masks set before training
WAYS = ("omp", "imp", *_BEFORE)
_KEEP = 0.8  # share of the weights that a round of IMP keeps


def paper_training(steps_per_epoch: int, epochs: int = 182) -> TrainConfig:
    """The paper's training of ResNet-18 on CIFAR-10: SGD 0.1, a tenth at epochs 91 and 136, decay 5e-4."""
    optim = OptimConfig(lr=0.1, schedule="step", milestones=(91 / 182, 136 / 182), gamma=0.1, weight_decay=5e-4)
    return TrainConfig(steps=epochs * steps_per_epoch, optim=optim)


@dataclass(frozen=True)
class PruneFirst:
    """How a network becomes sparse before it has to forget.

    Args:
        how: "omp": train, prune once by magnitude over all layers, rewind, train again. "imp": the same in rounds that
            each remove 20 % of what is left. "synflow" (100 rounds, no data), "snip", "grasp", "random": masks before
            training. The paper prefers "omp" and "synflow": their masks depend least on the samples.
        sparsity: fraction of zeros among the selected weights; the paper's is 95 %.
        train: one training. rewind: part of it after which weights are remembered (the paper's epoch 8 of 182).
        select: which weights; all but the last layer. The paper: `Select(layers=("conv",))`.
    Raises:
        ConfigError: an unknown way, or a value out of range.
    """

    how: str = "omp"
    sparsity: float = 0.95
    train: TrainConfig = field(default_factory=lambda: paper_training(176))
    rewind: float = 8 / 182
    select: Select = field(default_factory=lambda: Select(last_dense=True))

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise unknown("way of pruning", self.how, WAYS)
        if not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity must lie strictly between 0 and 1, got {self.sparsity}")

    def stages(self) -> list[Stage]:
        """The trainings, for `training.run_stages`."""
        if self.how in _BEFORE:
            recipe = replace(_BEFORE[self.how](self.sparsity), select=self.select)
            return [Stage(self.how, recipe, self.train)]
        rounds = 1 if self.how == "omp" else math.ceil(math.log(1 - self.sparsity) / math.log(_KEEP))
        return imp(self.sparsity, rounds, self.train, rewind=self.rewind, select=self.select)

    def apply(
        self, model: nn.Module, data: Any, run: str | Path | None = None, *, resume: bool = False
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        """Train `model` (changed in place) into a sparse one.

        Args:
            data: a `Dataset` or training samples as `as_batches` takes them, in shuffled `Batches` if it is those.
        Returns:
            the trained model, and its masks by parameter name.
        """
        train = data.train if isinstance(data, Dataset) else as_batches(data, "training")
        if not train.shuffle:
            train = Batches(train.source, train.batch_size, seed=train.seed, shuffle=True, transform=train.transform)
        task = Classification(model)
        only = Dataset(train, None, None, 0, ())  # type: ignore[arg-type]  # nothing is measured inside
        run_stages(self.stages(), task, only, run, resume=resume)
        return task.model, dict(task.masks)
