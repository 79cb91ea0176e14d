"""From two data sets to a transfer report: tickets are drawn from one, and adapted to the other.

A study is JSON values, and its results are functions of them and a seed, so that seeds run in processes of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data import Dataset, load
from ...errors import ConfigError, DataError, ShapeError, unknown
from ...metrics.classification import accuracy
from ...models import build
from ...recipes import imp
from ...sparsify.allocation import ERK, Allocation, Global, Uniform
from ...sparsify.groups import Select
from ...training import Classification, OptimConfig, TrainConfig, run_stages
from . import pictures
from .adapt import freeze, predict
from .mapping import LabelMapping
from .prompt import VisualPrompt
from .transfer import WAYS, Row, Target, transfer_report

BORDER = 3.0  # deviations of the source's pixels that a prompt's pixels may reach
GREY = (0.299, 0.587, 0.114)
Say = Callable[[str], None]
ALLOCATIONS: dict[str, Allocation] = {"uniform": Uniform(), "erk": ERK(), "global": Global()}


@dataclass(frozen=True)
class TransferStudy:
    """What is transferred to what; JSON values only.

    Args:
        source, source_options: the data set that tickets are drawn on, by name. They and what is trained on them stand
            for nothing where sources are given.
        model, model_options: the network, by its name in `models.MODELS` or an import path.
        sparsities: of the tickets; 0 is the dense network. The last layer stays dense.
        phases: of iterative magnitude pruning, after each of which the weights are rewound.
        rewind: fraction of the dense training after which the weights are remembered.
        allocation: "uniform": the same share of every layer; "global" (the authors'): one ranking of all weights, which
            can empty a layer of a small network; "erk".
        steps, optim: of the source's training and of each retraining.
        target, target_options: the data set to adapt to. limit: only so many training samples of it.
        inner: side of the target's picture inside the prompt; None: 5/7 of the source's, as 160 of 224.
        shots: samples per class; None is all. ways: "prompt", "probe".
        mapping: of labels, see `LabelMapping`. epochs, prompt_lr, probe_lr: of both adaptations.
    Raises:
        ConfigError: a value out of range.
    """

    source: str = "mnist"
    source_options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "mlp"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    sparsities: tuple[float, ...] = (0.0, 0.9)
    phases: int = 1
    rewind: float = 0.1
    allocation: str = "uniform"
    steps: int = 500
    optim: Mapping[str, Any] = field(default_factory=lambda: {"name": "adam", "lr": 1e-3})
    target: str = "fashion-mnist-900"
    target_options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    inner: int | None = None
    shots: tuple[int | None, ...] = (None, 10)
    ways: tuple[str, ...] = ("prompt", "probe")
    mapping: str = "iterative"
    epochs: int = 40
    prompt_lr: float = 0.05
    probe_lr: float = 0.01

    def __post_init__(self) -> None:
        if not self.sparsities or not all(0 <= s < 1 for s in self.sparsities):
            raise ConfigError(f"sparsities of tickets lie in [0, 1), got {self.sparsities}")
        if self.allocation not in ALLOCATIONS:
            raise unknown("allocation", self.allocation, ALLOCATIONS)
        if not self.ways or set(self.ways) - set(WAYS):
            raise ConfigError(f"ways to transfer are {WAYS}, got {self.ways}")
        LabelMapping(self.mapping)
        OptimConfig(**self.optim)

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TransferStudy:
        """Raises ConfigError for a key that is no field, with the nearest known ones."""
        known = [f.name for f in fields(TransferStudy)]
        for key in values:
            if key not in known:
                raise unknown("setting of a transfer", key, known)
        tuples = ("sparsities", "shots", "ways")
        made: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        return TransferStudy(**made)


@dataclass(frozen=True)
class Sources:
    """Frozen classifiers of one task.

    Args:
        models: name -> network. upstream: accuracy of each on its own test set. density: kept share of the weights
            that may be zero. shape: of their input. centre, width: mean and deviation of its pixels in training.
    """

    models: dict[str, nn.Module]
    upstream: dict[str, float]
    density: dict[str, float]
    shape: tuple[int, ...]
    centre: float
    width: float


def tickets(study: TransferStudy, seed: int, folder: Path | None = None, say: Say = lambda line: None) -> Sources:
    """Train the dense network and draw a ticket at every sparsity; resumable in `folder`."""
    data = load(study.source, **{"seed": seed, **study.source_options})
    models = {}
    for sparsity in study.sparsities:
        name = "dense" if sparsity == 0 else f"{100 * sparsity:g} %"
        models[name] = ticket(study, data, sparsity, seed, folder and folder / f"source-{sparsity:g}")
        say(f"source {name}: trained")
    return sources(models, data)


def ticket(study: TransferStudy, data: Dataset, sparsity: float, seed: int, folder: Path | None) -> nn.Module:
    """One network: trained, pruned by magnitude in phases, rewound and trained again; sparsity 0: trained only."""
    torch.manual_seed(seed)
    optim = OptimConfig(**study.optim)
    keep, log = (0, 0) if folder is None else (500, 50)
    train = TrainConfig(steps=study.steps, seed=seed, optim=optim, checkpoint_every=keep, log_every=log)
    rule, chosen = ALLOCATIONS[study.allocation], Select(last_dense=True)
    stages = imp(sparsity or 0.5, study.phases, train, rewind=study.rewind, allocation=rule, select=chosen)
    task = Classification(network(study, data))
    run_stages(stages if sparsity else stages[: -study.phases], task, data, folder, resume=folder is not None)
    return copy.deepcopy(task.model).cpu().eval()


def network(study: TransferStudy, data: Dataset) -> nn.Module:
    """The untrained network of the study for its source."""
    return build_for(study.model, data, study.model_options)


def build_for(model: str, data: Dataset, options: Mapping[str, Any]) -> nn.Module:
    """A network of the zoo for the shape and classes of `data`, or one by its import path with its options alone."""
    own = {} if ":" in model else {"shape": data.shape, "classes": data.classes}
    return build(model, **{**own, **options})


def sources(models: Mapping[str, nn.Module], data: Dataset) -> Sources:
    """Trained networks of `data` as frozen sources, measured on its test set.

    Raises:
        DataError: there is no test set.
    """
    if data.test is None:
        raise DataError("the source's data have no test set, so nothing is known upstream")
    x, y = data.test.tensors()
    frozen = {name: freeze(model) for name, model in models.items()}
    upstream = {name: accuracy(predict(model, x), y) for name, model in frozen.items()}
    pixels = torch.cat([data.train.batch(step)[0].flatten() for step in range(min(8, len(data.train)))])
    density = {name: _density(model) for name, model in frozen.items()}
    return Sources(frozen, upstream, density, tuple(data.shape), float(pixels.mean()), float(pixels.std()))


def _density(model: nn.Module) -> float:
    """Share of the entries of all weights with two or more axes that are not 0."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)


def target(study: TransferStudy, found: Sources, seed: int) -> Target:
    """The study's target for these sources: its pixels get their moments, its colours their number.

    Raises:
        DataError: no test set. ShapeError: no pictures, or channels that cannot be matched. ConfigError: an inner side
            that leaves no border.
    """
    data = load(study.target, **{"seed": seed, **study.target_options})
    if data.test is None:
        raise DataError(f"data set {study.target!r} has no test set to measure the transfer on")
    channels, side = found.shape[0], min(found.shape[1:], default=0)
    if len(found.shape) != 3 or len(data.shape) != 3:
        raise ShapeError(f"a prompt needs pictures (channels, h, w), got {found.shape} and {tuple(data.shape)}")
    x, y = data.train.tensors()
    test_x, test_y = data.test.tensors()
    middle, spread = x.mean(), x.std()
    kept = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[: study.limit]
    train = coloured((x[kept] - middle) / spread, channels), y[kept]
    inner = study.inner or side * 5 // 7
    moments: dict[str, Any] = {
        "mean": [-found.centre / found.width] * channels,  # standardised pixels become the source's
        "std": [1 / found.width] * channels,
    }

    def prompt() -> VisualPrompt:
        return VisualPrompt(found.shape, inner, bound="tanh", scale=BORDER, **moments)

    def prepare(pictures: Tensor) -> Tensor:
        size = found.shape[1:]
        same = pictures.shape[2:] == torch.Size(size)
        larger = pictures if same else F.interpolate(pictures, size, mode="bilinear", align_corners=False)
        return larger * found.width + found.centre

    prompt()  # an inner side that does not fit is said before anything is trained
    return Target(study.target, train, (coloured((test_x - middle) / spread, channels), test_y), prompt, prepare)


def coloured(x: Tensor, channels: int) -> Tensor:
    """(n, c, h, w) with other channels: grey is repeated, colours become grey by their brightness.

    Raises:
        ShapeError: other numbers of channels than 1 and 3.
    """
    have = x.shape[1]
    if have == channels:
        return x
    if have == 1:
        return x.expand(-1, channels, -1, -1)
    if have == 3 and channels == 1:
        return (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    raise ShapeError(f"pictures of {have} channels cannot be shown to a network of {channels}")


def report(
    study: TransferStudy, found: Sources, seed: int, say: Say = lambda line: None, folder: Path | None = None
) -> dict[str, Any]:
    """Adapt all sources to the target.

    Args:
        folder: keeps what the sources see through the learned prompts (`pictures.load`).
    Returns:
        {"upstream", "density": by model, "rows": rows of the transfer report}.
    """
    posed, prompts = pictures.watched(target(study, found, seed))
    rows = transfer_report(
        found.models,
        [posed],
        shots=study.shots,
        ways=study.ways,
        seeds=(seed,),
        upstream=found.upstream,
        mapping=LabelMapping(study.mapping),
        prompting={"epochs": study.epochs, "lr": study.prompt_lr},
        probing={"epochs": study.epochs, "lr": study.probe_lr},
        say=say,
    )
    if folder is not None and prompts:
        keys = [(count, model) for count in study.shots for model in found.models]
        pictures.save(folder, pictures.inputs(prompts, posed.test[0][:1], keys))
    return {"upstream": found.upstream, "density": found.density, "rows": [row.as_json() for row in rows]}


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a result that was kept as JSON."""
    return [Row(**row) for row in result["rows"]]
