"""The unlearning testbed: a perceptron on noisy digits, dense or pruned, and every method on one forget set.

Protocol of the small reproduction: digits, standardised as a whole, with
fixed N(0, 0.6^2) noise on the pixels, 1000 to train and 797 to test,
64-200-200-10; SGD, momentum 0.9, decay 5e-4, batches of 64, 20 epochs, learning rate 0.05 with a tenth at 50 and 75 %;
95 % of the two hidden matrices pruned, rewound to epoch 2. Fine-tuning and l1: 10 epochs at 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data.dataset import Batches, Dataset
from gossamer.data.digits import digits
from gossamer.data.idx import mnist
from gossamer.errors import NumericsError, unknown
from gossamer.models.mlp import mlp
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
    Trigger,
    attack_success,
    poison,
    transfer,
    unlearn,
)
from gossamer.reuse.unlearning.descent import train
from gossamer.reuse.unlearning.masks import Job
from gossamer.reuse.unlearning.measure import Figures
from gossamer.reuse.unlearning.split import shuffled
from gossamer.sparsify.groups import Select
from gossamer.training.config import OptimConfig, TrainConfig
from gossamer.training.task import Classification

BATCH, EPOCHS = 64, 20
SCENARIOS: dict[str, Callable[[Dataset, int], ForgetSplit]] = {
    "class": lambda data, seed: ForgetSplit.by_class(data, 0),
    "random": lambda data, seed: ForgetSplit.at_random(data, 0.1, seed=seed),
}
NETWORKS = ("dense", "omp", "imp", "synflow")
HIDDEN = Select(only=("fc*",))
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
    """The first 12,000 training images of MNIST in memory, and its 10,000 test images."""
    data = mnist(batch_size=BATCH, seed=seed)
    x, y = data.train.source[torch.arange(12_000)]
    if data.train.transform is not None:
        x = data.train.transform(x, torch.Generator())
    test = Batches(list(data.test.tensors()), 256)
    return replace(data, train=Batches([x, y], BATCH, seed=seed, shuffle=True), test=test)


DATA: dict[str, Callable[[int], Dataset]] = {"digits": noisy_digits, "mnist": mnist_part}


def training(batches: Batches, seed: int, epochs: int = EPOCHS) -> TrainConfig:
    """The training of every network here, the retrained ones included."""
    optim = OptimConfig(lr=0.05, weight_decay=5e-4, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    return TrainConfig(steps=epochs * len(batches), seed=seed, optim=optim, device="cpu", log_every=0)


def trained(data: Dataset, network: str, seed: int, epochs: int = EPOCHS) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network on all training samples, and its masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(shape=data.shape, hidden=(200, 200), norm=False)
    config = training(data.train, seed, epochs)
    if network == "dense":
        return train(Classification(model), data.train, config, Job({}, seed, "cpu")), {}
    return PruneFirst(network, 0.95, config, rewind=0.1, select=HIDDEN).apply(model, data)


def forgetting(
    scenario: str,
    network: str,
    seed: int,
    methods: tuple[str, ...] = tuple(METHODS),
    *,
    data: str = "digits",
    epochs: int = EPOCHS,
    mutant: str | None = None,
) -> dict[str, Any]:
    """Train a network, let it forget by every method, measure all; cached on disk.

    Args:
        scenario: a key of `SCENARIOS`. network: one of `NETWORKS`. methods: keys of `METHODS`.
        data: a key of `DATA`. epochs: of the training.
        mutant: "no_penalty" (l1 with gamma 0), "mask_of_ones" (the network that should be sparse is dense),
            "no_enforce" (methods do not know the masks).
    Returns:
        {"original", "retrain", method: {"ua", "mia", "ra", "ta", "gap" (to the retrained network), "seconds", "leaked"
        (masked weights that are not 0), "zeros" (share of exact zeros in the hidden matrices)}, ...}; None for a method
        that diverged.
    """
    if scenario not in SCENARIOS:
        raise unknown("forget scenario", scenario, SCENARIOS)
    key = {"scenario": scenario, "network": network, "seed": seed, "methods": list(methods)}
    key |= {"data": data, "epochs": epochs, "mutant": mutant}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _forgetting(scenario, network, seed, methods, data, epochs, mutant)

    return cell("gossamer.claims.unlearn_testbed", key, compute)


def _forgetting(
    scenario: str, network: str, seed: int, methods: tuple[str, ...], name: str, epochs: int, mutant: str | None
) -> dict[str, Any]:
    data = DATA[name](seed)
    split = SCENARIOS[scenario](data, seed)
    model, masks = trained(data, "dense" if mutant == "mask_of_ones" else network, seed, epochs)
    again = Retrain(batch_size=BATCH, train=training(shuffled(split.retain, BATCH, seed), seed, epochs))
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
        hidden = {n: p.detach() for n, p in made.named_parameters() if n.startswith("fc") and p.ndim > 1}
        zeros = torch.cat([weight.flatten() == 0 for weight in hidden.values()])
        rows[key] = _row(report.after) | {
            "gap": report.gaps["retrain"],
            "leaked": sum(int(hidden[n][~mask].count_nonzero()) for n, mask in masks.items()),
            "zeros": float(zeros.double().mean()),
        }
    return rows


def _row(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in ("ua", "mia", "ra", "ta", "seconds")}


REPAIRS = ("ft", "l1")


def backdoor(network: str, seed: int) -> dict[str, Any]:
    """A 2x2 trigger in a tenth of the noisy digits, and what forgetting the poisoned samples leaves of it; cached.

    Returns:
        {"original", "retrain", one for each of `REPAIRS`: {"clean": test accuracy, "success": of the attack}}, in %.
    """

    def compute() -> dict[str, Any]:
        with one_thread():
            return _backdoor(network, seed)

    return cell("gossamer.claims.unlearn_testbed", {"what": "backdoor", "network": network, "seed": seed}, compute)


def _backdoor(network: str, seed: int) -> dict[str, Any]:
    clean = noisy_digits(seed)
    trigger = Trigger(size=2, value=3.0, target=0)
    x, y = clean.train.source[torch.arange(1000)]
    images, labels, chosen = poison(x, y, trigger, 0.1, seed)
    data = replace(clean, train=Batches([images, labels], BATCH, seed=seed, shuffle=True))
    split = ForgetSplit.by_index(data, chosen)
    model, masks = trained(data, network, seed)
    again = Retrain(train=training(shuffled(split.retain, BATCH, seed), seed))
    x, y = clean.test.tensors()
    rows = {}
    for name, method in {"original": None, "retrain": again, **{key: METHODS[key] for key in REPAIRS}}.items():
        made = model
        if method is not None:
            made, _ = unlearn(model, split, method=method, masks=masks, seed=seed, device="cpu")
        right = float((made(x).argmax(1) == y).double().mean())
        rows[name] = {"clean": 100 * right, "success": attack_success(made, x, y, trigger)}
    return rows


SOURCE, TARGET = range(7), range(7, 10)


def transferred(seed: int) -> dict[str, Any]:
    """Digits 0 to 6 are the source, 7 to 9 the target of a linear probe; each source class is forgotten once; cached.

    Returns:
        {"before": accuracy in % on the target's test set} and for the methods "l1" and "retrain" {"l1, best": without
        the class whose absence is best on the target's training set, "l1, class": that class, "l1, mean": mean over
        the classes}.
    """

    def compute() -> dict[str, Any]:
        with one_thread():
            return _transferred(seed)

    return cell("gossamer.claims.unlearn_testbed", {"what": "transfer", "seed": seed}, compute)


def _transferred(seed: int) -> dict[str, Any]:
    whole = noisy_digits(seed)
    parts = [part.source[torch.arange(part.samples)] for part in (whole.train, whole.test)]
    source = [_of_classes(part, SOURCE) for part in parts]
    target = [_of_classes(part, TARGET) for part in parts]
    data = replace(
        whole,
        train=Batches(source[0], BATCH, seed=seed, shuffle=True),
        test=Batches(source[1], 256),
        classes=len(SOURCE),
    )
    model, _ = trained(data, "dense", seed)

    def probe(network: nn.Module, on: int) -> float:
        return transfer(network, target[0], target[on], lr=0.05, batch_size=BATCH, seed=seed, device="cpu").accuracy

    row: dict[str, Any] = {"before": probe(model, 1)}
    for name in ("l1", "retrain"):
        found: dict[int, tuple[float, float]] = {}
        for label in SOURCE:
            split = ForgetSplit.by_class(data, label)
            again = Retrain(train=training(shuffled(split.retain, BATCH, seed), seed))
            method = again if name == "retrain" else METHODS[name]
            made, _ = unlearn(model, split, method=method, seed=seed, device="cpu")
            found[label] = (probe(made, 0), probe(made, 1))
        best = max(found, key=lambda label: found[label][0])
        row |= {f"{name}, class": best, f"{name}, best": found[best][1]}
        row[f"{name}, mean"] = sum(test for _, test in found.values()) / len(found)
    return row


def _of_classes(part: tuple[torch.Tensor, ...], classes: range) -> list[torch.Tensor]:
    """The samples of some classes, labels from 0."""
    which = (part[1] >= classes.start) & (part[1] < classes.stop)
    return [part[0][which], part[1][which] - classes.start]
