"""The super-resolution testbed: one training of the small EDSR at scale 2, sparse from random weights.

The network starts from bicubic interpolation, without which so short a training stays below it. Adam with a constant
rate of 1e-3, 8 patches of 48 pixels a step, the first half of the steps prunes. Finished trainings are kept on disk.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data.locate import find
from gossamer.domains.superres.data import Pair, Patches, read_pairs
from gossamer.domains.superres.generated import leaf_pairs
from gossamer.domains.superres.networks import build
from gossamer.domains.superres.run import authors_optimiser, bicubic_by, evaluate, train
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.training.config import TrainConfig

SCALE, PATCH, BATCH, RATE = 2, 48, 8, 1e-3
BODY = Select(exclude=("tail*",))


def train_superres(
    recipe: Recipe | None, seed: int, *, data: str = "leaves", steps: int = 400, pretrain: int = 0
) -> dict[str, Any]:
    """Train and measure once; the result is cached on disk.

    Args:
        recipe: the method; None trains dense. seed: of initial weights and patches.
        data: "leaves": generated dead leaves, other ones for the test; "sr": BSD100 to train, Set5 to test.
        pretrain: dense steps before (L1-norm).
    Returns:
        {"psnr", "ssim", "bicubic_psnr", "layers" (name -> kept, total), "zeros_exact", "seconds"}.
    Raises:
        DataError: the pictures are absent.
    """
    text = recipe.to_yaml() if recipe else None
    settings = {"recipe": text, "seed": seed, "data": data, "steps": steps, "pretrain": pretrain}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(recipe, seed, data, steps, pretrain)

    return cell("gossamer.claims.superres_testbed", settings, compute)


def pictures(data: str) -> tuple[list[Pair], list[Pair]]:
    """Training and test pairs."""
    if data == "leaves":
        return leaf_pairs(12, SCALE, seed=1), leaf_pairs(4, SCALE, seed=2)
    folder = find("sr", "BSD100", "Set5")
    return read_pairs(folder / "BSD100", SCALE), read_pairs(folder / "Set5", SCALE)


def _train(recipe: Recipe | None, seed: int, data: str, steps: int, pretrain: int) -> dict[str, Any]:
    started = time.perf_counter()
    training, test = pictures(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build("edsr-small", SCALE)
        options: dict[str, Any] = {"patch": PATCH, "batch_size": BATCH}
        if pretrain:
            model, _, _ = train(model, training, Recipe(), _config(pretrain, seed), **options)
        model, masks, _ = train(model, training, recipe or Recipe(), _config(steps, seed), **options)
    score, floor = evaluate(model, test, SCALE), evaluate(bicubic_by(SCALE), test, SCALE)
    weights = dict(model.named_parameters())
    return {
        "psnr": score.psnr,
        "ssim": score.ssim,
        "bicubic_psnr": floor.psnr,
        "layers": {name: [int(mask.sum()), mask.numel()] for name, mask in masks.items()},
        "zeros_exact": all(not bool(weights[name][~mask].count_nonzero()) for name, mask in masks.items()),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _config(steps: int, seed: int) -> TrainConfig:
    optim = authors_optimiser(RATE)
    return TrainConfig(steps=steps, seed=seed, device="cpu", checkpoint_every=0, log_every=0, optim=optim)


def step_cost(recipe: Recipe, network: str = "edsr-baseline", rounds: int = 5) -> dict[str, float]:
    """Seconds of one training step with a recipe and without, taken in turns on one thread; medians and their ratio.

    Args:
        network: of NETWORKS, at scale 2 with 16 patches of 64 pixels, the defaults of `superres train`.
    """
    low, high = Patches(leaf_pairs(2, SCALE), SCALE).batch(0)
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    with one_thread():
        runs = {}
        for name, chosen in (("dense", Recipe()), ("sparse", recipe)):
            model = build(network, SCALE)
            optimizer = torch.optim.Adam(model.parameters(), 2e-4, (0.9, 0.99))
            runs[name] = model, optimizer, Sparsifier(model, optimizer, chosen, 1_000_000)
        for _ in range(rounds + 1):
            for name, (model, optimizer, _) in runs.items():
                started = time.perf_counter()
                optimizer.zero_grad()
                F.l1_loss(model(low), high).backward()
                optimizer.step()
                seconds[name].append(time.perf_counter() - started)
    dense, sparse = (statistics.median(values[1:]) for values in seconds.values())  # the first round warms up
    paired = statistics.median(s / d for s, d in list(zip(seconds["sparse"], seconds["dense"], strict=True))[1:])
    return {"dense": dense, "sparse": sparse, "ratio": paired}


def first_steps(network: str, recipe: Recipe, steps: int = 2) -> float:
    """The loss after the first steps of a full-size network on generated pictures; NaN would be an error."""
    patches = Patches(leaf_pairs(2, SCALE), SCALE, PATCH, 2)
    model = build(network, SCALE)
    optimizer = torch.optim.Adam(model.parameters(), 2e-4, (0.9, 0.99))
    sparsifier = Sparsifier(model, optimizer, recipe, 300_000)
    loss = math.nan
    with one_thread():
        for step in range(steps):
            low, high = patches.batch(step)
            optimizer.zero_grad()
            value = F.l1_loss(model(low), high)
            value.backward()
            optimizer.step()
            loss = float(value.detach())
    sparsifier.remove()
    return loss
