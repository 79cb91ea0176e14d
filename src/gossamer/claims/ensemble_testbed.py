"""The noisy-digits testbed of G2GNet: a perceptron with three hidden layers under masks of equal density."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data.catalogue import load
from gossamer.errors import DataError
from gossamer.metrics.classification import accuracy
from gossamer.models.mlp import mlp
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

WIDTH, BATCH, TRAIN = 160, 50, 700
# name -> (noise of standardised pixels, share of training labels drawn at random, epochs)
SETTINGS = {
    "pixel noise": (1.0, 0.0, 25),
    "label noise": (0.3, 0.4, 40),
    "fashion": (0.0, 0.0, 40),
    "cifar": (0.0, 0.0, 10),
}
DATA = {"fashion": "fashion-mnist-900", "cifar": "cifar10-jpeg"}
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def train_masked(
    recipe: Recipe | None, setting: str, seed: int, width: int = WIDTH, shuffled: bool = False
) -> dict[str, Any]:
    """Train and test one perceptron (hidden layers of `width`) with SGD 0.05, momentum 0.9, cosine; cached on disk.

    Args:
        recipe: the method; None trains dense. setting: a key of SETTINGS. seed: of everything.
        shuffled: input pixels change places, the same in all images, so that groups of neighbours become groups of any.
    Returns:
        {"accuracy" in points, "kept" weights of masked layers, "grouped": whether every unit of a group of 20 still
        has the inputs of its neighbours}.
    Raises:
        DataError: the data set of the setting is absent.
    """
    settings = {"recipe": recipe.to_yaml() if recipe else None, "setting": setting, "seed": seed, "width": width}
    settings |= {"shuffled": shuffled}

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(recipe, setting, seed, width, shuffled)

    return cell(__name__, settings, compute)


def _train(recipe: Recipe | None, setting: str, seed: int, width: int, shuffled: bool) -> dict[str, Any]:
    x, y, test_x, test_y = _split(setting, seed)
    if shuffled:
        places = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(1000 + seed))
        x, test_x = (images.flatten(1)[:, places].view_as(images) for images in (x, test_x))
    model = mlp(shape=x.shape[1:], hidden=(width,) * 3, norm=False)
    for layer in model:
        if isinstance(layer, nn.Linear):  # He normal; a masked layer is scaled to its own fan-in by the recipe
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    epochs = SETTINGS[setting][2]
    steps = epochs * (len(x) // BATCH)
    sparsifier = Sparsifier(model, optimizer, recipe or Recipe(), steps, seed=seed)
    step = 0
    for _ in range(epochs):
        for picked in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            F.cross_entropy(model(x[picked]), y[picked]).backward()
            optimizer.step()
            step += 1
    masks = dict(sparsifier.masks)
    sparsifier.finalize()
    model.eval()
    with torch.no_grad():
        score = 100 * accuracy(model(test_x), test_y)
    grouped = all(bool((block == block[0]).all()) for mask in masks.values() for block in mask.split(width // 8))
    return {"accuracy": score, "kept": sum(int(m.sum()) for m in masks.values()), "grouped": grouped}


def _split(setting: str, seed: int) -> Split:
    """Training and test images and labels; which are which, and their noise, follow from the seed."""
    noise, wrong, _ = SETTINGS[setting]
    source = torch.Generator().manual_seed(seed)
    if setting in DATA:
        return _real(DATA[setting], source)
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target, dtype=torch.long)
    order = torch.randperm(len(labels), generator=source)
    images = images[order] + noise * torch.randn(images.shape, generator=source)
    labels = labels[order]
    shown = labels[:TRAIN].clone()
    flipped = torch.rand(TRAIN, generator=source) < wrong
    shown[flipped] = torch.randint(10, (int(flipped.sum()),), generator=source)
    return images[:TRAIN], shown, images[TRAIN:], labels[TRAIN:]


def _real(name: str, source: torch.Generator) -> Split:
    data = load(name)
    if data.test is None:
        raise DataError(f"data set {name!r} has no test images")
    x, y = data.train.tensors()
    test_x, test_y = data.test.tensors()
    picked = torch.randperm(len(y), generator=source)[:5000]
    spread = torch.randperm(len(test_y), generator=torch.Generator().manual_seed(0))[:2000]
    mean, deviation = x.mean(), x.std()
    return (x[picked] - mean) / deviation, y[picked], (test_x[spread] - mean) / deviation, test_y[spread]
