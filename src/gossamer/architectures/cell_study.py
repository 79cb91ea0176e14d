"""One seed of DASS against its controls: dense search then pruning, and a random cell, each retrained and pruned alike.

The presets hold the released settings ("darts") and the small ones; the code path is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Batches, Dataset, load
from ..errors import ConfigError, DataError, unknown
from ..training.config import OptimConfig
from .cells import CellNet, SuperNet, cell_space
from .chain import OPERATIONS, ChainNet, ChainSuperNet, chain_space
from .dass import Dass
from .operations import DARTS
from .random_search import draws_of
from .scored_layers import finish, make_sparse
from .space import Architecture, SearchSpace
from .stages import Batch, Stage, dass_stages, dense_stages, hydra_prune, train_stage

ARMS = ("dass", "dense search", "random cell")
HALF = 0.5  # of the training part goes to the architecture, as released


@dataclass(frozen=True)
class CellStudy:
    """What one search and its controls consist of; JSON values only.

    Args:
        space: "darts" or "chain". network: options of the super-network. final: of the network that is retrained.
        data, data_options: by name; without a `val` option half of the training part is held out for the architecture.
        keep: share of the weights of each layer that stays. order: of the architecture's gradient.
        search: steps of pre-training, pruning, fine-tuning; the dense control searches as long as all three.
        retrain: steps of dense training, of scores, of fine-tuning.
        weights, scores, arch, last: optimisers of the search's weights, scores and alphas, and of the retraining.
        reset_arch: see `Dass`. limit: only so many training and test samples; None takes all.
    """

    space: Literal["darts", "chain"] = "chain"
    network: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    data: str = "digits"
    data_options: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 50})
    keep: float = 0.03
    order: Literal[1, 2] = 1
    search: tuple[int, int, int] = (100, 50, 150)
    retrain: tuple[int, int, int] = (300, 160, 300)
    weights: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.05, "weight_decay": 5e-4})
    scores: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1, "weight_decay": 0.0})
    arch: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "adam", "lr": 3e-2, "betas": (0.5, 0.999), "schedule": "constant"}
    )
    last: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.05, "weight_decay": 5e-4})
    reset_arch: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.space not in ("darts", "chain"):
            raise unknown("space", self.space, ("darts", "chain"))
        if self.order not in (1, 2):
            raise ConfigError(f"order must be 1 or 2, got {self.order}")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep must lie in (0, 1], got {self.keep}")
        if len(self.search) != 3 or len(self.retrain) != 3 or min(*self.search, *self.retrain) < 1:
            raise ConfigError(f"search and retrain are three numbers of steps, got {self.search} and {self.retrain}")

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> CellStudy:
        """Raises ConfigError for a key that is no field, with the nearest known ones."""
        known = [f.name for f in fields(CellStudy)]
        for key in values:
            if key not in known:
                raise unknown("setting of a cell search", key, known)
        made: dict[str, Any] = {k: tuple(v) if k in ("search", "retrain") else v for k, v in values.items()}
        return CellStudy(**made)


_FULL_NETWORK = {"channels": 16, "layers": 8, "primitives": DARTS, "steps": 4}
_SMALL = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
PRESETS: dict[str, dict[str, Any]] = {
    "chain": {},
    "cells": {  # minutes on one core
        "space": "darts",
        "network": {"channels": 4, "layers": 3, "steps": 2, "primitives": _SMALL},
        "final": {"channels": 8, "layers": 3, "steps": 2, "primitives": _SMALL},
        "data": "mnist",
        "data_options": {"batch_size": 32},
        "keep": 0.1,
        "search": (40, 20, 60),
        "retrain": (120, 60, 120),
        "limit": 1000,
    },
    "darts": {  # as released, CIFAR-10, batches of 64 in the search (391 steps an epoch of 25,000) and of 128 after it
        "space": "darts",
        "network": _FULL_NETWORK,
        "final": {"channels": 36, "layers": 20, "drop_path": 0.2, "auxiliary": True, "primitives": DARTS, "steps": 4},
        "data": "cifar10",
        "data_options": {"batch_size": 64, "augment": True},
        "keep": 0.01,
        "order": 2,
        "search": (39_100, 19_550, 39_100),
        "retrain": (234_600, 7_820, 78_200),
        "weights": {"lr": 0.025, "weight_decay": 1e-3, "final": 0.04},
        "arch": {"name": "adam", "lr": 3e-4, "betas": (0.5, 0.999), "weight_decay": 1e-3, "schedule": "constant"},
        "last": {"lr": 0.1, "weight_decay": 3e-4},
    },
}


def preset(name: str, **changes: Any) -> CellStudy:
    """A study of PRESETS with fields changed."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return CellStudy.from_json(PRESETS[name] | changes)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy; of an auxiliary classifier, where there is one, with the weight 0.4."""
    out = model(batch[0])
    if isinstance(out, tuple):
        return F.cross_entropy(out[0], batch[1]) + 0.4 * F.cross_entropy(out[1], batch[1])
    return F.cross_entropy(out, batch[1])


def parts(study: CellStudy, seed: int) -> tuple[Dataset, Batches, Batches]:
    """The data whole (for retraining and the test), and the two parts of the search that share no sample.

    Raises:
        DataError: the part for the architecture is empty.
    """
    whole = _limited(load(study.data, **{"seed": seed, **study.data_options}), study.limit, seed)
    val = float(study.data_options.get("val", 0.0)) or HALF
    options = {"seed": seed, **study.data_options, "val": val}
    halves = _limited(load(study.data, **options), None if study.limit is None else study.limit // 2, seed)
    if halves.val is None:
        raise DataError(f"{study.data}: the part for the architecture is empty; give data_options a larger 'val'")
    held = halves.val
    validation = Batches(held.source, halves.train.batch_size, seed=seed, shuffle=True, transform=held.transform)
    return whole, halves.train, validation


def _limited(data: Dataset, limit: int | None, seed: int) -> Dataset:
    """The first samples of every part."""
    if limit is None:
        return data

    def cut(batches: Batches | None) -> Any:
        if batches is None:
            return None
        taken = batches.source[torch.arange(min(limit, batches.samples))]
        return Batches(list(taken), batches.batch_size, seed=seed, shuffle=batches.shuffle, transform=batches.transform)

    return Dataset(cut(data.train), cut(data.val), cut(data.test), data.classes, data.shape, data.kind)


def warn_of_overlap(train: Batches, val: Batches) -> int:
    """How many samples both parts hold; warns where there are any, as the architecture would then see training data."""
    rows = [{sample.numpy().tobytes() for sample in b.source[torch.arange(b.samples)][0]} for b in (train, val)]
    shared = len(rows[0] & rows[1])
    if shared:
        warnings.warn(f"{shared} samples are in both parts of the search: it would overfit to them", stacklevel=2)
    return shared


def space_of(study: CellStudy) -> SearchSpace:
    """The search space of the study."""
    options = study.network
    if study.space == "darts":
        return cell_space(options.get("primitives", DARTS), options.get("steps", 4))
    return chain_space(options.get("edges", 3), options.get("operations", tuple(OPERATIONS)))


def super_network(study: CellStudy, data: Dataset) -> Any:
    """The super-network of the study."""
    kind = SuperNet if study.space == "darts" else ChainSuperNet
    return kind(shape=data.shape, classes=data.classes, **study.network)


def network(study: CellStudy, data: Dataset, architecture: Architecture) -> nn.Module:
    """The network of one architecture, with sparse layers."""
    kind = CellNet if study.space == "darts" else ChainNet
    return make_sparse(kind(architecture, shape=data.shape, classes=data.classes, **study.final))


def _on(device: str, batches: Batches) -> Callable[[int], Batch]:
    return lambda step: tuple(part.to(device) for part in batches.batch(step))


def search_cell(
    study: CellStudy, arm: str, seed: int, *, folder: Path | None = None, device: str = "cpu"
) -> tuple[Architecture, list[dict[str, Any]]]:
    """The architecture that an arm finds, and its trajectory (empty for the random cell)."""
    data, train, val = parts(study, seed)
    torch.manual_seed(seed)
    model = super_network(study, data).to(device)
    if arm == "random cell":
        return draws_of(model.space, 1, seed)[0], []
    weights, scores = OptimConfig(**study.weights), OptimConfig(**study.scores)
    stages = dense_stages(sum(study.search), weights)
    if arm == "dass":
        stages = dass_stages(study.keep, study.search, weights, scores)
    search = Dass(stages, loss, study.order, OptimConfig(**study.arch), reset_arch=study.reset_arch)
    file = None if folder is None else folder / f"{arm.replace(' ', '-')}.state"
    history = search.fit(model, _on(device, train), _on(device, val), file=file)
    return model.architecture(), history


def retrain(
    study: CellStudy, architecture: Architecture, seed: int, device: str = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the network of an architecture dense, prune it by scores, fine-tune it; the last weights are measured.

    Returns:
        the plain sparse network, and {"dense", "pruned" (test accuracies), "nonzeros", "total", "curve"}.
    """
    data, _, _ = parts(study, seed)
    torch.manual_seed(seed)
    model = network(study, data, architecture).to(device)
    last, scores = OptimConfig(**study.last), OptimConfig(**study.scores)
    batches = _on(device, data.train)
    curve = train_stage(model, Stage("train", study.retrain[0], optim=last), loss, batches)
    row: dict[str, Any] = {"dense": accuracy(model, data.test, device)}
    tuned = last.model_copy(update={"lr": last.lr / 2})
    more = hydra_prune(model, study.keep, loss, batches, study.retrain[1:], scores, tuned)
    row["pruned"] = accuracy(model, data.test, device)
    masks = finish(model)
    row["nonzeros"] = sum(int(mask.sum()) for mask in masks.values())
    row["total"] = sum(mask.numel() for mask in masks.values())
    row["curve"] = [*curve, *((study.retrain[0] + step, value) for step, value in more)]
    return model.eval().cpu(), row


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches, device: str = "cpu") -> float:
    """Fraction of correct labels, in evaluation mode; the model's mode stays."""
    training = model.training
    model.eval()
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in batches)
    model.train(training)
    return right / batches.samples


def run_seed(
    study: CellStudy,
    seed: int,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    arms: tuple[str, ...] = ARMS,
    find: Callable[..., tuple[Architecture, list[dict[str, Any]]]] = search_cell,
    measure: Callable[[nn.Module, Tensor], Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """All arms of one seed.

    Args:
        folder: for the states of the searches, which then resume.
        find: searches for an arm. measure: (network, example) -> figures to add, such as latencies.
    Returns:
        arm -> {"architecture" (labels), "dense", "pruned", "nonzeros", "total", "history", "curve", ...}.
    """
    out: dict[str, Any] = {}
    data, _, _ = parts(study, seed)
    example = data.test.batch(0)[0][:1]
    for arm in arms:
        with torch.random.fork_rng(devices=[]):
            found, history = find(study, arm, seed, folder=folder, device=device)
            model, row = retrain(study, found, seed, device)
        out[arm] = {"architecture": space_of(study).describe(found), **row, "history": history}
        if measure is not None:
            out[arm] |= measure(model, example)
    return out


def job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """`run_seed` as `runs.sweep` calls it: config is {"study": fields, "seed": int}."""
    return run_seed(CellStudy.from_json(config["study"]), config["seed"], folder=folder, device=device)
