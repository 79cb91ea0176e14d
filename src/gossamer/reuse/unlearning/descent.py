"""Unlearning by training: retrain, fine-tune, gradient ascent, random labels, l1-sparse.

All run in the library's own loop, so they resume, stop at a NaN, and keep masks and zeros through momentum and decay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data.dataset import Batches, Dataset, generator
from ...errors import ConfigError, DataError
from ...maths.proximal import soft_threshold
from ...maths.schedules import Steps
from ...runs.rng import seed_all
from ...sparsify.recipe import Recipe
from ...sparsify.regularizers import L1
from ...sparsify.sparsifier import Sparsifier
from ...training.config import OptimConfig, TrainConfig
from ...training.loop import fit
from ...training.task import Batch, Classification
from .masks import Job, fixed, hold
from .split import ForgetSplit, labels_of, shuffled


@dataclass(frozen=True)
class _Descent:
    """Settings that the methods share.

    Args:
        lr: constant learning rate of SGD. epochs: passes over the samples that the method trains on; 0 changes nothing.
        batch_size, momentum, weight_decay: the authors'. clip: largest norm of the gradient, None does not clip.
    Raises:
        ConfigError: a value out of range.
    """

    lr: float = 0.01
    epochs: int = 10
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ConfigError(f"need epochs >= 0 and batch_size >= 1, got {self.epochs} and {self.batch_size}")
        self._optim()

    def _optim(self) -> OptimConfig:
        return OptimConfig(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, schedule="constant")

    def _train(
        self, task: Classification, batches: Batches, job: Job, recipe: Recipe | None = None, after: Watch | None = None
    ) -> nn.Module:
        """Train on shuffled `batches` under the job's masks. after: an extra callback once the masks are set."""
        if not self.epochs:
            return task.model
        config = TrainConfig(
            steps=self.epochs * len(batches),
            seed=job.seed,
            optim=self._optim(),
            clip=self.clip,
            device=job.device,  # type: ignore[arg-type]  # checked there
            checkpoint_every=len(batches),
        )
        return train(task, batches, config, job, recipe, after)


Watch = Callable[[Sparsifier], None]


def train(
    task: Classification,
    batches: Batches,
    config: TrainConfig,
    job: Job,
    recipe: Recipe | None = None,
    after: Watch | None = None,
) -> nn.Module:
    """`fit` with fixed masks and nothing to validate on. Raises NumericsError where the loss diverges."""
    data = Dataset(batches, None, None, 0, ())  # type: ignore[arg-type]  # nothing is measured inside

    def start(sparsifier: Sparsifier) -> None:
        if job.masks:
            hold(job.masks)(sparsifier)
        if after is not None:
            after(sparsifier)

    fit(
        task,
        data,
        recipe or fixed(job.masks),
        config,
        run=job.run,
        resume=job.resume,
        on_start=start,
        progress=job.progress,
    )
    return task.model


@dataclass(frozen=True)
class FineTune(_Descent):
    """Go on training on the retain set (FT; Warnecke et al. 2021). The paper's: rate 0.01, 10 epochs."""

    name: ClassVar[str] = "ft"

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model, changed in place."""
        return self._train(Classification(model), shuffled(split.retain, self.batch_size, job.seed), job)


class _Ascent(Classification):
    """Minus the cross entropy: a step goes up."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return -super().loss(model, batch)


@dataclass(frozen=True)
class GradientAscent(_Descent):
    """Raise the loss of the forget set (GA; Graves et al. 2021, Thudi et al. 2022). The paper's: 1e-4, 5 epochs.

    The loss has no upper bound: a rate too large diverges and raises NumericsError; `clip` bounds the steps.
    """

    name: ClassVar[str] = "ga"
    lr: float = 1e-4
    epochs: int = 5

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model, changed in place."""
        return self._train(_Ascent(model), shuffled(split.forget, self.batch_size, job.seed), job)


@dataclass(frozen=True)
class RandomLabels(_Descent):
    """Fine-tune with wrong labels, drawn once, on the forget set (RL; Golatkar et al. 2020).

    Args:
        with_retain: train on the retain set with its own labels at the same time.
    """

    name: ClassVar[str] = "rl"
    with_retain: bool = True

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model, changed in place. Raises DataError where there is no second class to draw from."""
        classes = labels_of(split.retain).unique()
        wrong = wrong_labels(labels_of(split.forget), classes, job.seed)
        sources = [_Relabelled(split.forget, wrong)]
        if self.with_retain:
            sources.append(_Relabelled(split.retain, labels_of(split.retain)))
        joined = Batches(
            _Joined(sources), self.batch_size, seed=job.seed, shuffle=True, transform=split.forget.transform
        )
        return self._train(Classification(model), joined, job)


def wrong_labels(labels: Tensor, classes: Tensor, seed: int) -> Tensor:
    """For each label another one of `classes`, uniformly. Raises DataError where there is none."""
    table = [classes[classes != label] for label in labels]
    if any(not len(others) for others in table):
        raise DataError("random labels need a second class in the retain set")
    draws = torch.rand(len(labels), generator=generator(seed, 5))
    return torch.stack([others[int(u * len(others))] for others, u in zip(table, draws.tolist(), strict=True)])


class _Relabelled:
    """The inputs of a set with given labels."""

    def __init__(self, part: Batches, labels: Tensor) -> None:
        self.source, self.labels = part.source, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        return self.source[indices][0], self.labels[indices]


class _Joined:
    """Two sources one after the other."""

    def __init__(self, sources: list[_Relabelled]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        first = len(self.sources[0])
        inside = indices < first
        if len(self.sources) == 1 or bool(inside.all()):
            return self.sources[0][indices]
        late = self.sources[1][indices[~inside] - first]
        if not bool(inside.any()):
            return late
        early = self.sources[0][indices[inside]]
        order = torch.cat([inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]]).argsort()
        return tuple(torch.cat([a, b])[order] for a, b in zip(early, late, strict=True))


def l1_schedule(gamma: float, epochs: int, tail: int = 0) -> Steps:
    """The strength of the penalty in every epoch: gamma (1 - e / (epochs - tail)), then 0 in the last `tail` epochs.

    With tail == epochs it is constant, as released.

    >>> [round(l1_schedule(1.0, 4)(e / 4), 2) for e in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if not gamma >= 0 or gamma == float("inf") or not 0 <= tail <= epochs or epochs < 1:
        raise ConfigError(f"need gamma >= 0 and 0 <= tail <= epochs, got gamma={gamma}, tail={tail}, epochs={epochs}")
    falling = epochs - tail
    if not falling:
        return Steps(((0.0, gamma),))
    return Steps(tuple((e / epochs, gamma * max(0.0, 1 - e / falling)) for e in range(epochs)))


@dataclass(frozen=True)
class L1Sparse(_Descent):
    """Fine-tune on the retain set with a falling l1 penalty on all parameters: the paper's own method.

    Args:
        gamma: first strength. The authors' is about 5e-4 for ResNet-18 on CIFAR-10; with few steps it must be larger
            (2e-3 on the noisy digits).
        tail: epochs without penalty at the end. prox: shrink by a proximal step instead of a subgradient, which ends in
            exact zeros.
    Source: Jia et al. 2023, equation 6 and the released code.
    """

    name: ClassVar[str] = "l1"
    gamma: float = 5e-4
    tail: int = 0
    prox: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs:
            l1_schedule(self.gamma, self.epochs, self.tail)

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model, changed in place."""
        batches = shuffled(split.retain, self.batch_size, job.seed)
        if not self.epochs:
            return model
        strength = l1_schedule(self.gamma, self.epochs, self.tail)
        recipe, after = fixed(job.masks), None
        if self.prox:
            after = _shrink_after_steps(strength)
        else:
            recipe = recipe.replace(name="l1-sparse", regularizers=(L1(strength),))
        return self._train(Classification(model), batches, job, recipe, after)


def _shrink_after_steps(strength: Steps) -> Watch:
    """A proximal step of the penalty after each step of the optimiser, as large as momentum makes a subgradient's."""

    def begin(sparsifier: Sparsifier) -> None:
        @torch.no_grad()
        def shrink(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            now = strength((sparsifier.step - 1) / sparsifier.steps)
            for group in optimizer.param_groups:
                bound = group["lr"] * now / (1 - group.get("momentum", 0.0))
                for parameter in group["params"]:
                    parameter.copy_(soft_threshold(parameter, bound))

        sparsifier.optimizer.register_step_post_hook(shrink)

    return begin


@dataclass(frozen=True)
class Retrain(_Descent):
    """Train anew on the retain set under the same masks: exact, and what every other method is measured by.

    Args:
        lr, epochs: the paper's 0.1 over 182 epochs; the rate falls to a tenth at `milestones` (epochs 91 and 136).
        train: how the model was trained, if otherwise; then only its seed is replaced.
        fresh: makes the untrained network; by default a copy whose modules have all drawn new weights.
    """

    name: ClassVar[str] = "retrain"
    lr: float = 0.1
    epochs: int = 182
    milestones: tuple[float, ...] = (91 / 182, 136 / 182)
    train: TrainConfig | None = None
    fresh: Callable[[], nn.Module] | None = field(default=None, compare=False)

    def _optim(self) -> OptimConfig:
        return replace_schedule(super()._optim(), self.milestones)

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """A new model; `model` gives the architecture only."""
        seed_all(job.seed)
        made = self.fresh() if self.fresh is not None else reinitialised(model)
        task = Classification(made)
        if self.train is None:
            return self._train(task, shuffled(split.retain, self.batch_size, job.seed), job)
        config = self.train.model_copy(update={"seed": job.seed, "device": job.device, "validate_every": 0})
        return train(task, shuffled(split.retain, split.retain.batch_size, job.seed), config, job)


def replace_schedule(optim: OptimConfig, milestones: tuple[float, ...]) -> OptimConfig:
    """The same optimiser with a rate that falls to a tenth at each of `milestones` (fractions of the run)."""
    return optim.model_copy(update={"schedule": "step", "milestones": milestones, "gamma": 0.1})


def reinitialised(model: nn.Module) -> nn.Module:
    """A copy in which every module has drawn its weights anew, by its own `reset_parameters`.

    Raises:
        ConfigError: a module holds parameters and cannot do that; pass `fresh`.
    """
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ConfigError(
                f"{name or type(module).__name__} cannot draw its weights anew (no reset_parameters); pass "
                "Retrain(fresh=...), a callable that builds the untrained network"
            )
    return made
