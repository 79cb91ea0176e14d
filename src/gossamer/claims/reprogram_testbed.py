"""Tickets on generated glyphs, and their transfer to digits by a prompt and by a linear head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.mutants import mutate
from gossamer.claims.testbeds import one_thread
from gossamer.data.catalogue import load
from gossamer.data.dataset import Batches, Dataset
from gossamer.metrics.classification import accuracy
from gossamer.models.mlp import mlp
from gossamer.recipes import imp
from gossamer.reuse.reprogramming import LabelMapping, Target, VisualPrompt, transfer_report
from gossamer.reuse.reprogramming.adapt import predict
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.training import Classification, OptimConfig, TrainConfig, run_stages

CLASSES, SIDE, TRAIN, TEST = 20, 16, 4000, 2000
HIDDEN, EPOCHS, BATCH = 300, 12, 128
BORDER = 3.0  # times tanh: pixels are standardised, not in [0, 1]
PROMPTING = {"epochs": 40, "lr": 0.05}
PROBING = {"epochs": 40, "lr": 0.01}
SHOTS = (None, 10)


def transfer(
    sparsities: tuple[float, ...], seed: int, setting: str = "glyphs", mutant: str | None = None
) -> dict[str, Any]:
    """Train a source, draw tickets from it, adapt them; cached on disk.

    Args:
        sparsities: of the tickets (of the two hidden weights); 0 is the dense source itself.
        setting: "glyphs": generated glyphs to digits; "mnist": digits of MNIST to 900 pictures of clothes.
        mutant: a fault of claims.mutants planted in the tickets' recipes.
    Returns:
        {"upstream": {sparsity: %}, "density": {sparsity: kept fraction}, "rows": rows of the transfer report}.
    Raises:
        DataError: MNIST or the clothes are absent.
    """
    settings = {"sparsities": list(sparsities), "seed": seed, "setting": setting, "mutant": mutant}

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _transfer(sparsities, seed, setting, mutant)

    return cell(__name__, settings, compute)


def _transfer(sparsities: tuple[float, ...], seed: int, setting: str, mutant: str | None) -> dict[str, Any]:
    source, target, classes = (_glyphs if setting == "glyphs" else _clothes)(seed)
    models = {f"{s:g}": _ticket(source, s, seed, classes, mutant) for s in sparsities}
    assert source.test is not None
    x, y = source.test.tensors()
    upstream = {name: accuracy(predict(model, x), y) for name, model in models.items()}
    rows = transfer_report(
        models, [target], shots=SHOTS, seeds=(seed,), upstream=upstream, prompting=PROMPTING, probing=PROBING,
        mapping=LabelMapping(),
    )  # fmt: skip
    return {
        "upstream": {name: 100 * value for name, value in upstream.items()},
        "density": {name: _density(model) for name, model in models.items()},
        "rows": [row.as_json() for row in rows],
    }


def _density(model: nn.Module) -> float:
    hidden = [p for name, p in model.named_parameters() if name.startswith("fc") and p.ndim > 1]
    return sum(int(p.count_nonzero()) for p in hidden) / sum(p.numel() for p in hidden)


def _ticket(source: Dataset, sparsity: float, seed: int, classes: int, mutant: str | None) -> nn.Module:
    """Train, prune by magnitude, rewind to the first epoch, train again; sparsity 0: train only."""
    torch.manual_seed(seed)
    steps = EPOCHS * len(source.train)
    train = TrainConfig(
        steps=steps, seed=seed, optim=OptimConfig(name="adam", lr=1e-3), checkpoint_every=0, device="cpu"
    )
    stages = imp(max(sparsity, 0.5), 1, train, rewind=1 / EPOCHS, select=Select(last_dense=True))
    kept = stages if sparsity else stages[:-1]
    for stage in kept:
        if mutant is not None and isinstance(stage.recipe, Recipe):
            object.__setattr__(stage, "recipe", mutate(stage.recipe, mutant))
    task = Classification(mlp(shape=source.shape, hidden=(HIDDEN, HIDDEN), classes=classes, norm=False))
    run_stages(kept, task, source)
    return copy.deepcopy(task.model).eval()


def _glyphs(seed: int) -> tuple[Dataset, Target, int]:
    """Smoothed random prototypes, shifted by up to two pixels under noise 1.2; digits in the middle of their input."""
    rng = torch.Generator().manual_seed(1000 + seed)
    shapes = F.avg_pool2d(torch.randn(CLASSES, 1, SIDE + 4, SIDE + 4, generator=rng), 5, 1)
    shapes = (shapes - shapes.mean((2, 3), keepdim=True)) / shapes.std((2, 3), keepdim=True)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (count,), generator=rng)
        shifts = torch.randint(-2, 3, (count, 2), generator=rng)
        pairs = zip(labels.tolist(), shifts.tolist(), strict=True)
        pictures = torch.stack([torch.roll(shapes[label], shift, (1, 2)) for label, shift in pairs])
        return pictures + 1.2 * torch.randn(pictures.shape, generator=rng), labels

    train, test = draw(TRAIN), draw(TEST)
    data = Dataset(
        Batches(list(train), BATCH, seed=seed), None, Batches(list(test), 500, shuffle=False), CLASSES, (1, SIDE, SIDE)
    )
    return data, _digits(seed), CLASSES


def _digits(seed: int) -> Target:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(found.images, dtype=torch.float32)[:, None][order]
    y = torch.tensor(found.target, dtype=torch.long)[order]
    x = (x - x.mean()) / x.std()
    return Target(
        "digits", (x[:1000], y[:1000]), (x[1000:], y[1000:]), lambda: _prompt(SIDE, 8), lambda p: _resized(p, SIDE)
    )


def _clothes(seed: int) -> tuple[Dataset, Target, int]:
    """A tenth of MNIST as the source, clothes as the target, both standardised at 28 x 28."""
    numbers, clothes = load("mnist"), load("fashion-mnist-900")
    assert numbers.test is not None
    assert clothes.test is not None
    (x, y), (test_x, test_y) = numbers.train.tensors(), numbers.test.tensors()
    picked = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:6000]
    mean, deviation = x.mean(), x.std()
    train = Batches([(x[picked] - mean) / deviation, y[picked]], BATCH, seed=seed)
    test = Batches([(test_x[:2000] - mean) / deviation, test_y[:2000]], 500, shuffle=False)
    data = Dataset(train, None, test, 10, numbers.shape)
    (cx, cy), (tx, ty) = clothes.train.tensors(), clothes.test.tensors()
    middle, width = cx.mean(), cx.std()
    target = Target(
        "clothes", ((cx - middle) / width, cy), ((tx - middle) / width, ty), lambda: _prompt(28, 20), lambda p: p
    )
    return data, target, 10


def _prompt(outer: int, inner: int) -> VisualPrompt:
    return VisualPrompt((1, outer, outer), inner, bound="tanh", scale=BORDER)


def _resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
