"""The digits testbed of Sparse-IFT: tiny networks of equal cost, dense and sparse, normalised alike."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.architectures.isoflop import iso_flop, iso_recipe
from gossamer.claims.cells import cell
from gossamer.claims.mutants import mutate
from gossamer.claims.testbeds import one_thread
from gossamer.data.catalogue import load
from gossamer.metrics.classification import accuracy
from gossamer.models.mlp import mlp
from gossamer.models.resnet import CifarResNet
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

Split = tuple[Tensor, Tensor, Tensor, Tensor]
# epochs, batch, learning rate, weight decay, interval of RigL
SETTINGS = {
    "digits": (60, 50, 0.05, 5e-4, 20),
    "fashion": (15, 50, 0.05, 5e-4, 20),
    "cifar": (8, 50, 0.05, 5e-4, 20),
}


def train_iso(
    family: str | None, sparsity: float, method: str, seed: int, setting: str = "digits", mutant: str | None = None
) -> dict[str, Any]:
    """Train and test one network; cached on disk.

    Args:
        family: of the transform; None: the dense network. method: "rigl", "set" or "static".
        setting: "digits": perceptron 64-6-6-10; "fashion": ResNet-8 of half the usual width on 900 pictures of clothes;
            "cifar": the same on 1000 pictures of CIFAR-10 in JPEG.
        mutant: a fault: of `claims.mutants`, or "not_widened": the dense network under a mask of the same density.
    Returns:
        {"accuracy" in points, "kept": non-zeros that masks allow in all weights, "dense": those of the dense network,
        "flops": cost over that of the dense network, "finite"}.
    """
    settings = {"family": family, "sparsity": sparsity, "method": method, "seed": seed, "setting": setting}

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(family, sparsity, method, seed, setting, mutant)

    return cell(__name__, settings | {"mutant": mutant}, compute)


def _train(
    family: str | None, sparsity: float, method: str, seed: int, setting: str, mutant: str | None
) -> dict[str, Any]:
    epochs, batch, lr, decay, every = SETTINGS[setting]
    x, y, test_x, test_y = {"digits": digits, "fashion": fashion, "cifar": cifar}[setting](seed)
    model: nn.Module = (
        mlp(shape=(64,), hidden=(6, 6)) if setting == "digits" else CifarResNet(8, shape=tuple(x.shape[1:]), width=0.5)
    )
    dense = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    recipe, ratio = Recipe(), 1.0
    if family is not None:
        whole = {"first_dense": False, "last_dense": False} if setting == "digits" else {}
        shown = 0.0 if mutant == "not_widened" else sparsity
        iso = iso_flop(model, family, shown, x[:1], seed=seed, **whole)  # type: ignore[arg-type]
        moves: dict[str, Any] = {} if method == "static" else {"every": every}
        recipe = iso_recipe(iso, method, **moves)
        if mutant not in (None, "not_widened"):
            recipe = mutate(recipe, str(mutant))
        model, ratio = iso.model, iso.ratio
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    steps = epochs * (len(x) // batch)
    sparsifier = Sparsifier(model, optimizer, recipe, steps, seed=seed)
    step = 0
    for _ in range(epochs):
        for picked in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[picked]), y[picked])
            loss.backward()
            optimizer.step()
            step += 1
    free = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1}
    kept = sum(free.values()) - sum(int((~mask).sum()) for mask in sparsifier.entry_masks.values())
    sparsifier.finalize()
    model.eval()
    with torch.no_grad():
        score = 100 * accuracy(model(test_x), test_y)
    return {"accuracy": score, "kept": kept, "dense": dense, "flops": ratio, "finite": bool(torch.isfinite(loss))}


def digits(seed: int) -> Split:
    """1000 training and 797 test digits, every pixel standardised; the seed splits them."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(found.data, dtype=torch.float32)[order]
    y = torch.tensor(found.target, dtype=torch.long)[order]
    mean, deviation = x[:1000].mean(0), x[:1000].std(0)
    x = (x - mean) / torch.where(deviation > 0, deviation, 1.0)
    return x[:1000], y[:1000], x[1000:], y[1000:]


def fashion(seed: int) -> Split:
    """600 training and 300 test pictures of clothes. Raises DataError where they are absent."""
    data = load("fashion-mnist-900")
    assert data.test is not None
    (x, y), (test_x, test_y) = data.train.tensors(), data.test.tensors()
    return x, y, test_x, test_y


def cifar(seed: int) -> Split:
    """100 training pictures of each class of CIFAR-10 in JPEG, and 1000 for the test. Raises DataError where absent."""
    return _cifar()


@cache
def _cifar() -> Split:
    data = load("cifar10-jpeg", per_class=100, augment=False)
    assert data.test is not None
    x, y = data.train.tensors()
    spread = torch.randperm(data.test.samples, generator=torch.Generator().manual_seed(0))[:1000]
    test_x, test_y = data.test.tensors()
    return x, y, test_x[spread], test_y[spread]
