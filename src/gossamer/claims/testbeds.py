"""The shifted-digits testbed: one training of an MLP, dense or sparse, measured from many sides.

Protocol of GraNet's small reproduction: a 144-300-100-10 perceptron with batch normalisation, SGD with
Nesterov momentum 0.9, learning rate 0.1 falling to 0 along a cosine, weight decay 5e-4, batches of 128, 2000
steps. The same training runs on MNIST where that is present. A finished training is kept on disk (cells.py), so
an interrupted reproduction resumes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.protocol import Context
from gossamer.data import Batches, Dataset
from gossamer.data.digits import shifted_digits
from gossamer.data.idx import mnist
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
DATA: dict[str, Callable[..., Dataset]] = {"shifted_digits": shifted_digits, "mnist": mnist}


@dataclass(frozen=True)
class Protocol:
    """How one network is trained; the arguments of `train_digits`."""

    steps: int
    hidden: tuple[int, ...]
    lr: float
    weight_decay: float
    batch_size: int
    control: str
    data: str
    norm_eps: float


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
    data: str = "shifted_digits",
    norm_eps: float = 1e-5,
) -> dict[str, Any]:
    """Train and test a perceptron once; the result is cached on disk.

    Args:
        recipe: the method; None trains dense.
        seed: of initial weights, data order, noise and masks.
        steps, hidden, lr, weight_decay, batch_size: the protocol; the defaults are the module's.
        control: "shuffle" permutes the initial masks inside each layer, a control that keeps layer ratios.
        data: a key of `DATA`.
        norm_eps: added to the variance in batch normalisation (torch's default).
    Returns:
        {"accuracy", "worst_class", "nll", "ece", "auroc" (test images against pure noise), "fgsm_accuracy"
        (all fractions, nll in nats), "kept" and "total" (masked weights), "layers" (name -> density),
        "zeros_exact", "peak_density", "flips", "itop_rate", "dense_gradient_steps", "history", "seconds"}.
    Raises:
        NumericsError: the loss is NaN or infinite at some step. ConfigError: an unknown control or data set.
        DataError: the data set is absent.
    """
    if control not in CONTROLS:
        raise unknown("control", control, CONTROLS)
    if data not in DATA:
        raise unknown("data set of the testbed", data, DATA)
    protocol = Protocol(steps, tuple(hidden), lr, weight_decay, batch_size, control, data, norm_eps)
    settings = {"recipe": recipe.to_yaml() if recipe else None, "seed": seed, "threads": 1, **asdict(protocol)}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(recipe, seed, protocol)

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


def _train(recipe: Recipe | None, seed: int, protocol: Protocol) -> dict[str, Any]:
    started = time.perf_counter()
    data = DATA[protocol.data](batch_size=protocol.batch_size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(shape=data.shape, hidden=protocol.hidden)
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            layer.eps = protocol.norm_eps
    optimizer = torch.optim.SGD(
        model.parameters(), lr=protocol.lr, momentum=0.9, nesterov=True, weight_decay=protocol.weight_decay
    )
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    sparsifier = Sparsifier(model, optimizer, recipe or Recipe(), protocol.steps, data=data.train, seed=seed)
    if protocol.control == "shuffle":
        _shuffle(sparsifier, seed, initial)
    train_steps(model, optimizer, data.train, (0, protocol.steps), protocol.steps, protocol.lr)
    sparsifier.finalize()
    return {
        **evaluate(model, protocol.data),
        **_mask_figures(sparsifier),
        "history": sparsifier.history,
        "seconds": round(time.perf_counter() - started, 2),
    }


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    window: tuple[int, int],
    total: int = STEPS,
    lr: float = 0.1,
) -> None:
    """Train from step window[0] up to window[1] of a run of `total` steps with a cosine learning rate.

    Raises:
        NumericsError: the loss is NaN or infinite at some step.
    """
    for step in range(*window):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / total)) / 2
        x, y = batches.batch(step)
        loss = F.cross_entropy(model(x), y)
        if step % 100 == 0 and not math.isfinite(loss.item()):
            raise NumericsError(f"the loss is {loss.item()} at step {step}; lower the learning rate {lr}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _shuffle(sparsifier: Sparsifier, seed: int, initial: dict[str, Tensor]) -> None:
    """Permute every mask inside its layer: counts stay, positions do not. What is kept has its initial value."""
    source = torch.Generator().manual_seed(1_000_003 + seed)
    for mask in sparsifier.masks.values():
        mask.copy_(mask.flatten()[torch.randperm(mask.numel(), generator=source)].view_as(mask))
    sparsifier.model.load_state_dict(initial)
    sparsifier.enforce()


@cache
def _test_tensors(data: str) -> tuple[Tensor, Tensor, Tensor]:
    """Test inputs and labels (the same for all seeds), and as many canvases of pure noise."""
    x, y = DATA[data]().test.tensors()
    return x, y, NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))


def evaluate(model: nn.Module, data: str = "shifted_digits") -> dict[str, float]:
    """Accuracy and its neighbours on the test set; the model's mode stays. Fields as in `train_digits`."""
    x, y, noise = _test_tensors(data)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits, foreign = model(x), model(noise)
    figures = {
        "accuracy": classification.accuracy(logits, y),
        "worst_class": classification.worst_class(logits, y)[1],
        "nll": calibration.nll(logits, y),
        "ece": calibration.ece(logits, y),
        "auroc": ood.auroc(ood.top_probability(logits), ood.top_probability(foreign)),
        "fgsm_accuracy": robustness.fgsm_accuracy(model, x, y, ATTACK),
    }
    model.train(training)
    return figures


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
