"""The unlearning testbed: a perceptron on noisy digits, dense or pruned, and every method on one forget set.

Protocol of the small reproduction: digits, standardised as a whole, with
fixed N(0, 0.6^2) noise on the pixels, 1000 to train and 797 to test,
64-200-200-10; SGD, momentum 0.9, decay 5e-4, batches of 64, 20 epochs, learning rate 0.05 with a tenth at 50 and 75 %;
95 % of the two hidden matrices pruned, rewound to epoch 2. Fine-tuning and l1: 10 epochs at 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data.cifar import cifar10_jpeg
from gossamer.data.dataset import Batches, Dataset
from gossamer.data.digits import digits
from gossamer.data.idx import mnist
from gossamer.errors import NumericsError, unknown
from gossamer.models.mlp import mlp
from gossamer.models.resnet import CifarResNet
from gossamer.reuse.unlearning import (
    FineTune,
    FisherForgetting,
    ForgetSplit,
    GradientAscent,
    Influence,
    L1Sparse,
    Method,
    PruneFirst,
    RandomLabels,
    Retrain,
    unlearn,
)
from gossamer.reuse.unlearning.descent import train
from gossamer.reuse.unlearning.masks import Job
from gossamer.reuse.unlearning.measure import Figures
from gossamer.reuse.unlearning.split import shuffled
from gossamer.sparsify.groups import Select, select
from gossamer.training.config import OptimConfig, TrainConfig
from gossamer.training.task import Classification

BATCH, EPOCHS = 64, 20
SCENARIOS: dict[str, Callable[[Dataset, int], ForgetSplit]] = {
    "class": lambda data, seed: ForgetSplit.by_class(data, 0),
    "random": lambda data, seed: ForgetSplit.at_random(data, 0.1, seed=seed),
}
NETWORKS = ("dense", "omp", "imp", "synflow")
_FAST: dict[str, Any] = {"lr": 0.05, "batch_size": BATCH}
METHODS: dict[str, Method] = {
    "ft": FineTune(**_FAST),
    "ga": GradientAscent(lr=0.01, epochs=5, batch_size=BATCH),
    "rl": RandomLabels(**_FAST),
    "ff": FisherForgetting(alpha=1e-6, samples=200),
    "iu": Influence(samples=500),
    "iu released": Influence(alpha=20.0, curvature="released", samples=500),
    "l1": L1Sparse(gamma=2e-3, **_FAST),
    "l1 prox": L1Sparse(gamma=2e-3, prox=True, **_FAST),
}


@cache
def noisy_digits(seed: int) -> Dataset:
    """Standardised digits with noise that is drawn once: 1000 to train, 797 to test, (1, 8, 8)."""
    plain = digits(batch_size=BATCH, seed=seed)
    source = torch.Generator().manual_seed(1000 + seed)
    pixels = plain.train.tensors()[0]
    parts = []
    for part in (plain.train, plain.test):
        x, y = part.tensors()
        standard = (x - pixels.mean()) / pixels.std()
        parts.append([standard + 0.6 * torch.randn(x.shape, generator=source), y])
    return replace(plain, train=Batches(parts[0], BATCH, seed=seed, shuffle=True), test=Batches(parts[1], 256))


@cache
def mnist_part(seed: int) -> Dataset:
    """The first 12,000 training images of MNIST in memory, and 2,000 of its test images."""
    data = mnist(batch_size=BATCH, seed=seed)
    return _in_memory(data, seed, 12_000, 2_000)


@cache
def cifar_part(seed: int) -> Dataset:
    """100 training images of each class of CIFAR-10 in JPEG, not augmented, and 1,000 test images."""
    return _in_memory(cifar10_jpeg(batch_size=BATCH, seed=seed, per_class=100, augment=False), seed, 1_000, 1_000)


def _in_memory(data: Dataset, seed: int, train: int, test: int) -> Dataset:
    """The first training images, and test images spread over all, transformed once."""
    parts = []
    for part, which in (
        (data.train, torch.arange(train)),
        (data.test, torch.randperm(data.test.samples, generator=torch.Generator().manual_seed(0))[:test]),
    ):
        x, y = part.source[which]
        parts.append([x if part.transform is None else part.transform(x, torch.Generator()), y])
    return replace(data, train=Batches(parts[0], BATCH, seed=seed, shuffle=True), test=Batches(parts[1], 256))


@dataclass(frozen=True)
class Bench:
    """What is trained on which data; `select` may be pruned, to `sparsity`."""

    data: Callable[[int], Dataset]
    model: Callable[[Dataset], nn.Module]
    epochs: int
    select: Select
    sparsity: float = 0.95


def _perceptron(data: Dataset) -> nn.Module:
    return mlp(shape=data.shape, hidden=(200, 200), norm=False)


HIDDEN = Select(only=("fc*",))
BENCHES = {
    "digits": Bench(noisy_digits, _perceptron, EPOCHS, HIDDEN),
    "mnist": Bench(mnist_part, _perceptron, 6, HIDDEN),
    "cifar": Bench(
        cifar_part, lambda data: CifarResNet(8, shape=data.shape, width=0.5), 15, Select(layers=("conv",)), 0.8
    ),
}


def training(batches: Batches, seed: int, epochs: int = EPOCHS) -> TrainConfig:
    """The training of every network here, the retrained ones included."""
    optim = OptimConfig(lr=0.05, weight_decay=5e-4, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    return TrainConfig(steps=epochs * len(batches), seed=seed, optim=optim, device="cpu", log_every=0)


def trained(
    data: Dataset, network: str, seed: int, bench: Bench = BENCHES["digits"]
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network on all training samples, and its masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = bench.model(data)
    config = training(data.train, seed, bench.epochs)
    if network == "dense":
        return train(Classification(model), data.train, config, Job({}, seed, "cpu")), {}
    return PruneFirst(network, bench.sparsity, config, rewind=0.1, select=bench.select).apply(model, data)


def forgetting(
    scenario: str,
    network: str,
    seed: int,
    methods: tuple[str, ...] = tuple(METHODS),
    *,
    data: str = "digits",
    mutant: str | None = None,
) -> dict[str, Any]:
    """Train a network, let it forget by every method, measure all; cached on disk.

    Args:
        scenario: a key of `SCENARIOS`. network: one of `NETWORKS`. methods: keys of `METHODS`.
        data: a key of `BENCHES`.
        mutant: "no_penalty" (l1 with gamma 0), "mask_of_ones" (the network that should be sparse is dense),
            "no_enforce" (methods do not know the masks).
    Returns:
        {"original", "retrain", method: {"ua", "mia", "ra", "ta", "gap" (to the retrained network), "seconds", "leaked"
        (masked weights that are not 0), "zeros" (share of zeros in the weights that may be pruned)}, ...}; None for a
        method that diverged.
    """
    if scenario not in SCENARIOS:
        raise unknown("forget scenario", scenario, SCENARIOS)
    key = {"scenario": scenario, "network": network, "seed": seed, "methods": list(methods)}
    key |= {"data": data, "mutant": mutant}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _forgetting(scenario, network, seed, methods, data, mutant)

    return cell("gossamer.claims.unlearn_testbed", key, compute)


def _forgetting(
    scenario: str, network: str, seed: int, methods: tuple[str, ...], name: str, mutant: str | None
) -> dict[str, Any]:
    bench = BENCHES[name]
    data = bench.data(seed)
    split = SCENARIOS[scenario](data, seed)
    model, masks = trained(data, "dense" if mutant == "mask_of_ones" else network, seed, bench)
    again = Retrain(batch_size=BATCH, train=training(shuffled(split.retain, BATCH, seed), seed, bench.epochs))
    known = None if mutant == "no_enforce" else masks
    options: dict[str, Any] = {"masks": known, "seed": seed, "device": "cpu"}
    _, report = unlearn(model, split, method=again, **options)
    exact = report.after
    rows: dict[str, Any] = {"original": _row(report.before), "retrain": _row(report.after) | {"gap": 0.0}}
    for key in methods:
        method = METHODS[key]
        if mutant == "no_penalty" and isinstance(method, L1Sparse):
            method = replace(method, gamma=0.0)
        try:
            made, report = unlearn(model, split, method=method, references=exact, **options)
        except NumericsError:
            rows[key] = None
            continue
        weights = dict(made.named_parameters())
        hidden = {group.name: weights[group.name].detach() for group in select(made, bench.select)}
        zeros = torch.cat([weight.flatten() == 0 for weight in hidden.values()])
        rows[key] = _row(report.after) | {
            "gap": report.gaps["retrain"],
            "leaked": sum(int(hidden[n][~mask].count_nonzero()) for n, mask in masks.items()),
            "zeros": float(zeros.double().mean()),
        }
    return rows


def _row(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in ("ua", "mia", "ra", "ta", "seconds")}
