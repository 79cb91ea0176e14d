"""The shifted-digits testbed: one training of an MLP, dense or sparse, measured from many sides.

Protocol of GraNet's small reproduction: a 144-300-100-10 perceptron with batch normalisation, SGD with
Nesterov momentum 0.9, learning rate 0.1 falling to 0 along a cosine, weight decay 5e-4, batches of 128, 2000
steps. A finished training is kept on disk (cells.py), so an interrupted reproduction resumes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
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
from gossamer.data import Batches
from gossamer.data.digits import shifted_digits
from gossamer.errors import NumericsError, unknown
from gossamer.maths.statistics import mean_sd
from gossamer.metrics import calibration, classification, ood, robustness
from gossamer.models.mlp import mlp
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

STEPS = 2000
HIDDEN = (300, 100)
ATTACK = 8 / 255  # FGSM step in units of the pixel range, as usual on CIFAR
NOISE = 0.25
CONTROLS = ("none", "shuffle")


def train_digits(
    recipe: Recipe | None,
    seed: int,
    *,
    steps: int = STEPS,
    hidden: tuple[int, ...] = HIDDEN,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    control: str = "none",
) -> dict[str, Any]:
    """Train and test once on the shifted digits; the result is cached on disk.

    Args:
        recipe: the method; None trains dense.
        seed: of initial weights, data order, noise and masks.
        steps, hidden, lr, weight_decay, batch_size: the protocol; the defaults are the module's.
        control: "shuffle" permutes the initial masks inside each layer, a control that keeps layer ratios.
    Returns:
        {"accuracy", "worst_class", "nll", "ece", "auroc" (test images against pure noise), "fgsm_accuracy"
        (all fractions, nll in nats), "kept" and "total" (masked weights), "layers" (name -> density),
        "zeros_exact", "peak_density", "flips", "itop_rate", "dense_gradient_steps", "history", "seconds"}.
    Raises:
        NumericsError: the loss is NaN or infinite at some step. ConfigError: an unknown control.
    """
    if control not in CONTROLS:
        raise unknown("control", control, CONTROLS)
    settings = {
        "recipe": recipe.to_yaml() if recipe else None,
        "seed": seed,
        "steps": steps,
        "hidden": list(hidden),
        "lr": lr,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "control": control,
        "threads": 1,
    }

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(recipe, seed, steps, hidden, lr, weight_decay, batch_size, control)

    return cell("gossamer.claims.testbeds", settings, compute)


def train_arms(
    ctx: Context, arms: Mapping[str, Recipe | None], *, least: int = 3, **protocol: Any
) -> dict[str, list[dict[str, Any]]]:
    """`train_digits` of every arm over the seeds that `ctx` allows: name -> one row per seed.

    All arms of one seed run before the next seed begins, so that every arm has the same seeds whenever time runs
    out; with `ctx.workers` above 1 they run in processes of their own.

    Args:
        arms: recipes by name; None trains dense.
        least: seeds that run whatever the time budget says.
        protocol: keywords of `train_digits`.
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
        yield lambda recipe, seed, protocol: partial(train_digits, recipe, seed, **protocol)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield lambda recipe, seed, protocol: pool.submit(train_digits, recipe, seed, **protocol).result
    finally:
        pool.shutdown(cancel_futures=True)


def summary(arms: dict[str, list[dict[str, Any]]], field: str) -> tuple[dict[str, float], dict[str, float]]:
    """Means and standard deviations over seeds of one field of every arm, by the arm's name."""
    pairs = {name: mean_sd([float(row[field]) for row in rows]) for name, rows in arms.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside: fastest for small models, and the bits do not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    recipe: Recipe | None,
    seed: int,
    steps: int,
    hidden: tuple[int, ...],
    lr: float,
    weight_decay: float,
    batch_size: int,
    control: str,
) -> dict[str, Any]:
    started = time.perf_counter()
    data = shifted_digits(batch_size=batch_size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(hidden=hidden)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    sparsifier = Sparsifier(model, optimizer, recipe or Recipe(), steps, data=data.train, seed=seed)
    if control == "shuffle":
        _shuffle(sparsifier, seed)
    _loop(model, optimizer, data.train, steps, lr)
    sparsifier.finalize()
    return {
        **_evaluate(model),
        **_mask_figures(sparsifier),
        "history": sparsifier.history,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _loop(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, steps: int, lr: float) -> None:
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        x, y = batches.batch(step)
        loss = F.cross_entropy(model(x), y)
        if step % 100 == 0 and not math.isfinite(loss.item()):
            raise NumericsError(f"the loss is {loss.item()} at step {step}; lower the learning rate {lr}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _shuffle(sparsifier: Sparsifier, seed: int) -> None:
    """Permute every mask inside its layer: counts stay, positions do not."""
    source = torch.Generator().manual_seed(1_000_003 + seed)
    for mask in sparsifier.masks.values():
        mask.copy_(mask.flatten()[torch.randperm(mask.numel(), generator=source)].view_as(mask))
    sparsifier.enforce()


@cache
def _test_tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Test inputs and labels (the same for all seeds), and as many canvases of pure noise."""
    x, y = shifted_digits().test.tensors()
    return x, y, NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))


def _evaluate(model: nn.Module) -> dict[str, float]:
    x, y, noise = _test_tensors()
    model.eval()
    with torch.no_grad():
        logits, foreign = model(x), model(noise)
    return {
        "accuracy": classification.accuracy(logits, y),
        "worst_class": classification.worst_class(logits, y)[1],
        "nll": calibration.nll(logits, y),
        "ece": calibration.ece(logits, y),
        "auroc": ood.auroc(ood.top_probability(logits), ood.top_probability(foreign)),
        "fgsm_accuracy": robustness.fgsm_accuracy(model, x, y, ATTACK),
    }


def _mask_figures(sparsifier: Sparsifier) -> dict[str, Any]:
    masks, history = sparsifier.masks, sparsifier.history
    parameters = dict(sparsifier.model.named_parameters())
    exact = all(bool((parameters[name][~mask] == 0).all()) for name, mask in sparsifier.entry_masks.items())
    return {
        "kept": sum(int(mask.sum()) for mask in masks.values()),
        "total": sum(mask.numel() for mask in masks.values()),
        "layers": {name: float(mask.double().mean()) for name, mask in masks.items()},
        "zeros_exact": exact,
        "peak_density": max(row["density"] for row in history),
        "flips": sum(row["flips"] for row in history),
        "itop_rate": sparsifier.itop_rate(),
        "dense_gradient_steps": sparsifier.dense_gradient_steps,
    }
