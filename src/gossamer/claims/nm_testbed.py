"""The N:M testbed: one training of a perceptron with N:M hidden layers on the shifted digits.

Protocol of the small reproductions of SR-STE and progressive gradient flow: 144-320-128-10 with batch
normalisation and a dense head, batches of 128, a learning rate that falls to 0 along a cosine; SGD with momentum
0.9, learning rate 0.1 and weight decay 5e-5, or AdamW with 3e-3 and 0.01. Finished trainings are kept on disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.protocol import Context
from gossamer.claims.testbeds import one_thread
from gossamer.data import Batches, Dataset
from gossamer.data.digits import shifted_digits
from gossamer.data.idx import mnist
from gossamer.errors import MaskError, NumericsError, unknown
from gossamer.metrics.classification import accuracy
from gossamer.models.mlp import mlp
from gossamer.recipes.nm import FlipLog
from gossamer.recipes.progressive import GradientNoise
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

HIDDEN = (320, 128)
HIDDEN_LAYERS = Select(only=("fc*",))  # the head stays dense
DATA: dict[str, Callable[..., Dataset]] = {"shifted_digits": shifted_digits, "mnist": mnist}

Parameters = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-5),
    "adam": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.01),
}


def train_nm(
    recipe: Recipe | None,
    seed: int,
    *,
    steps: int = 1200,
    optimizer: str = "sgd",
    pretrain: int = 0,
    data: str = "shifted_digits",
) -> dict[str, Any]:
    """Train and test once; the result is cached on disk.

    Args:
        recipe: the method, applied to the hidden layers; None trains dense.
        seed: of initial weights and data order.
        steps: optimiser steps. pretrain: dense steps before them, with an optimiser and a schedule of their own.
        optimizer: of OPTIMIZERS. data: of DATA.
    Returns:
        {"accuracy", "legal" (every group of the final weights obeys the pattern), "kept" (fraction), "sad" (entries
        whose mask differs from the first one, as a fraction), "flips" (per weight, whole run), "noise" (means of
        the last 10 rows of GradientNoise), "seconds"}.
    Raises:
        NumericsError: the loss is NaN or infinite. ConfigError: an unknown optimiser or data set.
        DataError: the data set is absent.
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    if data not in DATA:
        raise unknown("data set", data, DATA)
    settings = {
        "recipe": recipe.to_yaml() if recipe else None,
        "seed": seed,
        "steps": steps,
        "optimizer": optimizer,
        "pretrain": pretrain,
        "data": data,
    }

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(recipe, seed, steps, optimizer, pretrain, data)

    return cell("gossamer.claims.nm_testbed", settings, compute)


def train_nm_arms(
    ctx: Context, arms: Mapping[str, Recipe | None], *, least: int = 3, **protocol: Any
) -> dict[str, list[dict[str, Any]]]:
    """`train_nm` of every arm over the seeds that `ctx` allows: name -> one row per seed.

    Args:
        arms: recipes by name; None trains dense. least: seeds that run whatever the time budget says.
        protocol: keywords of `train_nm`.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    with _runner(ctx.workers) as submit:
        for seed in ctx.each_seed(least):
            jobs = {name: submit(recipe, seed, protocol) for name, recipe in arms.items()}
            for name, finished in jobs.items():
                row = finished()
                ctx.say(f"  {name}, seed {seed}: accuracy {row['accuracy']:.4f} ({row['seconds']:.1f} s)")
                rows[name].append(row)
    return rows


Finished = Callable[[], dict[str, Any]]


@contextmanager
def _runner(workers: int) -> Iterator[Callable[[Recipe | None, int, dict[str, Any]], Finished]]:
    """Yield a function that starts one training and returns a call that waits for its row."""
    if workers <= 1:
        yield lambda recipe, seed, protocol: partial(train_nm, recipe, seed, **protocol)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield lambda recipe, seed, protocol: pool.submit(train_nm, recipe, seed, **protocol).result
    finally:
        pool.shutdown(cancel_futures=True)


def _train(recipe: Recipe | None, seed: int, steps: int, optimizer: str, pretrain: int, name: str) -> dict[str, Any]:
    started = time.perf_counter()
    data = DATA[name](seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(shape=data.shape, hidden=HIDDEN)
    if pretrain:
        _fit(model, None, data.train, seed, pretrain, optimizer)
    sparsifier, flips, noise = _fit(model, recipe, data.train, seed, steps, optimizer)
    legal = _legal(sparsifier)
    sparsifier.finalize()
    return {
        "accuracy": _accuracy(model, name),
        "legal": legal and _zeros_agree(model, sparsifier),
        "kept": sparsifier.density(),
        "sad": flips.rows[-1]["divergence"] / max(1, flips.total),
        "flips": flips.flips / max(1, flips.total),
        "noise": noise.summary(),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _fit(
    model: nn.Module, recipe: Recipe | None, train: Batches, seed: int, steps: int, optimizer: str
) -> tuple[Sparsifier, FlipLog, GradientNoise]:
    opt = OPTIMIZERS[optimizer](model.parameters())
    lr = opt.param_groups[0]["lr"]
    chosen = recipe.replace(select=HIDDEN_LAYERS) if recipe else Recipe()
    sparsifier = Sparsifier(model, opt, chosen, steps, seed=seed)
    flips, noise = FlipLog(sparsifier), GradientNoise(sparsifier)
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        x, y = train.batch(step)
        loss = F.cross_entropy(model(x), y)
        if step % 100 == 0 and not math.isfinite(loss.item()):
            raise NumericsError(f"the loss is {loss.item()} at step {step}; lower the learning rate {lr}")
        opt.zero_grad()
        loss.backward()
        opt.step()
        flips()
        noise()
    return sparsifier, flips, noise


def _legal(sparsifier: Sparsifier) -> bool:
    try:
        sparsifier.check()
    except MaskError:
        return False
    return True


def _zeros_agree(model: nn.Module, sparsifier: Sparsifier) -> bool:
    """Whether the plain weights are 0 wherever the final masks drop."""
    weights = dict(model.named_parameters())
    return all(not bool(weights[name][~mask].any()) for name, mask in sparsifier.entry_masks.items())


@cache
def _test_tensors(name: str) -> tuple[Tensor, Tensor]:
    x, y = DATA[name]().test.tensors()
    return x, y


def _accuracy(model: nn.Module, name: str) -> float:
    x, y = _test_tensors(name)
    model.eval()
    with torch.no_grad():
        return accuracy(model(x), y)
