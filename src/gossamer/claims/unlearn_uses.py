"""Uses of unlearning on the noisy digits: closing a back door, and transfer after forgetting source classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.claims.unlearn_testbed import BATCH, METHODS, noisy_digits, trained, training
from gossamer.data.dataset import Batches
from gossamer.reuse.unlearning import ForgetSplit, Retrain, Trigger, attack_success, poison, transfer, unlearn
from gossamer.reuse.unlearning.split import shuffled

REPAIRS = ("ft", "l1")


def backdoor(network: str, seed: int) -> dict[str, Any]:
    """A 2x2 trigger in a tenth of the noisy digits, and what forgetting the poisoned samples leaves of it; cached.

    Returns:
        {"original", "retrain", one for each of `REPAIRS`: {"clean": test accuracy, "success": of the attack}}, in %.
    """

    def compute() -> dict[str, Any]:
        with one_thread():
            return _backdoor(network, seed)

    return cell(__name__, {"what": "backdoor", "network": network, "seed": seed}, compute)


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

    return cell(__name__, {"what": "transfer", "seed": seed}, compute)


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
