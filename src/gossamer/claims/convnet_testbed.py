"""The accuracy testbed of sparse convolutional networks: small MobileNets on noisy placed digits, at equal cost.

Protocol of the Fast Sparse ConvNets reproduction, the easier setting of its figures: digits at random places of a
12 x 12 canvas with noise 0.3, 1300 to train, 1500 fixed draws of the others to test; 300 steps of SGD with Nesterov
momentum 0.9, learning rate 0.1 along a cosine, weight decay 5e-4, batches of 96; masks from 15 to 70 % of the run,
every 20 steps. Finished trainings are kept on disk.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.claims.cells import cell
from gossamer.claims.protocol import Context
from gossamer.claims.testbeds import one_thread, train_steps
from gossamer.data.dataset import Dataset
from gossamer.data.digits import shifted_digits
from gossamer.data.idx import mnist
from gossamer.errors import unknown
from gossamer.maths.schedules import Every
from gossamer.maths.statistics import Estimate, paired_interval
from gossamer.metrics.classification import accuracy
from gossamer.models.mobilenet import digits_mobilenet
from gossamer.recipes.convnets import START, STOP, LayerChoice, pointwise
from gossamer.sparsify.averaging import recalibrate_bn
from gossamer.sparsify.patterns import Block, Pattern, Rows, Unstructured
from gossamer.sparsify.rearrange import rearrange
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import Random
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.sparsify.strips import OutBlock, prune_strips_

STEPS, BATCH, EVERY = 300, 96, 20
SPARSITY = 0.8
Row = dict[str, Any]

# arm -> (width, pattern of the 1x1 convolutions or None for dense, sparsity, whether channels are rearranged)
ARMS: dict[str, tuple[float, Pattern | None, float, bool]] = {
    "dense": (1.0, None, 0.0, False),
    "dense, half as wide": (0.5, None, 0.0, False),
    "sparse": (1.0, Unstructured(), SPARSITY, False),
    "sparse, 2.25 times as wide": (2.25, Unstructured(), SPARSITY, False),
    "blocks of 4": (1.0, Block(4, 1), SPARSITY, False),
    "rearranged blocks of 4": (1.0, Block(4, 1), SPARSITY, True),
    "blocks of 4 at 30 %": (1.0, Block(4, 1), 0.3, False),
    "filters": (1.0, Rows(), 0.75, False),  # 7808 weights in the filters that stay, as in the specification
    "half of the filters": (1.0, Rows(), 0.5, False),  # 7936 weights, those that read removed filters not counted
}


def _digits(seed: int) -> Dataset:
    return shifted_digits(batch_size=BATCH, seed=seed, canvas=12, noise=0.3, train=1300, test_draws=1500)


def _mnist(seed: int) -> Dataset:
    return mnist(batch_size=BATCH, seed=seed)


DATA: dict[str, Callable[[int], Dataset]] = {"digits": _digits, "mnist": _mnist}


def train(arm: str, seed: int, *, data: str = "digits", steps: int = STEPS, mutant: str | None = None) -> Row:
    """Train one arm once; the result is cached on disk.

    Args:
        arm: a key of ARMS. seed: of weights and data order. data: a key of DATA. steps: of the run.
        mutant: "random_masks" scores at random, "mask_of_ones" prunes nothing.
    Returns:
        {"accuracy" (points), "weights" (of 1x1 convolutions that are not zero), "living" (those of them that read a
        channel with any weight), "seconds"}.
    Raises:
        ConfigError: an unknown arm or data set. DataError: the data set is absent.
    """
    if arm not in ARMS:
        raise unknown("arm", arm, ARMS)
    if data not in DATA:
        raise unknown("data set", data, DATA)

    def compute() -> Row:
        with one_thread(), torch.random.fork_rng(devices=[]):
            return _train(arm, seed, data, steps, mutant)[0]

    key = {"arm": arm, "seed": seed, "data": data, "steps": steps, "mutant": mutant}
    return cell("gossamer.claims.convnet_testbed", key, compute)


def train_all(
    ctx: Context, arms: tuple[str, ...], tested: tuple[str, ...] = (), least: int = 3, **options: Any
) -> dict[str, list[Row]]:
    """`train` of every arm and seed: arm -> one row per seed. A mutant is planted in the arms of `tested` only."""
    rows: dict[str, list[Row]] = {arm: [] for arm in arms}
    for seed in ctx.each_seed(least):
        for arm in arms:
            row = train(arm, seed, mutant=ctx.mutant if arm in tested else None, **options)
            ctx.say(f"  {arm}, seed {seed}: {row['accuracy']:.1f} % with {row['weights']} weights")
            rows[arm].append(row)
    return rows


def gain(rows: Mapping[str, list[Row]], one: str, other: str) -> Estimate:
    """Paired interval of one arm minus another, in points of accuracy."""
    return paired_interval([r["accuracy"] for r in rows[one]], [r["accuracy"] for r in rows[other]])


def half(estimate: Estimate) -> float:
    """Half of the width of its interval."""
    return estimate.high - estimate.mean


def _recipe(model: nn.Module, pattern: Pattern, sparsity: float) -> Recipe:
    recipe = LayerChoice(dict.fromkeys(pointwise(model), pattern)).recipe("arm", sparsity)
    return recipe.replace(updates=_with(recipe, when=Every(EVERY, START, STOP)))


def _with(recipe: Recipe, **changes: Any) -> tuple[Any, ...]:
    """The recipe's updates with some fields changed."""
    updates: tuple[Any, ...] = recipe.updates
    return tuple(replace(update, **changes) for update in updates)


def _train(arm: str, seed: int, data: str, steps: int, mutant: str | None) -> tuple[Row, nn.Module, Dataset]:
    started = time.perf_counter()
    width, pattern, sparsity, moved = ARMS[arm]
    dataset = DATA[data](seed)
    torch.manual_seed(seed)
    model = digits_mobilenet(shape=dataset.shape, width=width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    recipe = Recipe() if pattern is None or mutant == "mask_of_ones" else _recipe(model, pattern, sparsity)
    if mutant == "random_masks":
        recipe = recipe.replace(updates=_with(recipe, score=Random()))
    begin = round(START * steps) if moved else 0
    if moved:  # dense until the first mask, when channels are rearranged by what they have learnt
        train_steps(model, optimizer, dataset.train, (0, begin), steps)
        patterns = dict.fromkeys(pointwise(model), OutBlock(4))
        found = rearrange(model, torch.zeros(2, *dataset.shape), patterns, sparsity, seed=seed)
        found.apply(model, inplace=True, optimizer=optimizer)
    sparsifier = Sparsifier(model, optimizer, recipe, steps, seed=seed)
    sparsifier.step = begin
    train_steps(model, optimizer, dataset.train, (begin, steps), steps)
    sparsifier.finalize()
    row = {
        "accuracy": _accuracy(model, dataset),
        "weights": sum(int(module.weight.count_nonzero()) for module in pointwise(model).values()),
        "living": living_weights(model),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return row, model, dataset


@torch.no_grad()
def _accuracy(model: nn.Module, dataset: Dataset) -> float:
    model.eval()
    x, y = dataset.test.tensors()
    return 100 * accuracy(torch.cat([model(part) for part in x.split(500)]), y)


def living_weights(model: nn.Module) -> int:
    """Weights of the chain of 1x1 convolutions that are not zero and read a channel with any weight."""
    alive: Tensor | None = None
    count = 0
    for module in pointwise(model).values():
        kept = module.weight.detach().flatten(1) != 0
        if alive is not None and len(alive) == kept.shape[1]:
            kept = kept & alive
        count += int(kept.sum())
        alive = kept.any(1)
    return count


# --------------------------------------------------------------------------- one-shot pruning of a trained network

ONE_SHOT = ("unstructured", "rearranged", "block", "filters")


def one_shot(seed: int, mutant: str | None = None) -> Row:
    """Prune a trained dense network once, in several patterns, with fresh batch statistics; cached on disk.

    Args:
        mutant: "identity" leaves the channels where they are.
    Returns:
        {"dense": points, by sparsity ("0.3", "0.5"): {by pattern of ONE_SHOT: points, "kept block", "kept rearranged",
        "kept unstructured": shares of sum |w|, "recovered", "difference": of the rearranged network's outputs}}.
    """

    def compute() -> Row:
        with one_thread(), torch.random.fork_rng(devices=[]):
            row, model, dataset = _train("dense", seed, "digits", STEPS, None)
            tables = {str(s): _prune_once(model, dataset, s, seed, mutant) for s in (0.3, 0.5)}
            return {"dense": row["accuracy"], **tables}

    return cell("gossamer.claims.convnet_testbed", {"what": "one shot", "seed": seed, "mutant": mutant}, compute)


def _prune_once(model: nn.Module, dataset: Dataset, sparsity: float, seed: int, mutant: str | None) -> Row:
    patterns = dict.fromkeys(pointwise(model), OutBlock(4))
    found = rearrange(model, torch.zeros(2, *dataset.shape), patterns, sparsity, seed=seed)
    if mutant == "identity":
        found = replace(found, orders={}, layers=tuple(replace(row, after=row.before) for row in found.layers))
    moved = found.apply(model)
    x, _ = dataset.test.tensors()
    with torch.no_grad():
        difference = float((moved.eval()(x[:100]) - model.eval()(x[:100])).abs().max())
    row: Row = {
        "kept block": found.before,
        "kept rearranged": found.after,
        "kept unstructured": found.free,
        "recovered": found.recovered,
        "difference": difference,
    }
    batches = [dataset.train.batch(step)[0] for step in range(10)]
    for name, source in (("rearranged", moved), ("block", model)):
        pruned = copy.deepcopy(source)
        prune_strips_(pruned, patterns, sparsity)
        recalibrate_bn(pruned, batches)
        row[name] = _accuracy(pruned, dataset)
    for name, pattern in (("unstructured", Unstructured()), ("filters", Rows())):
        pruned = prune_by(model, dict.fromkeys(patterns, pattern), sparsity)
        recalibrate_bn(pruned, batches)
        row[name] = _accuracy(pruned, dataset)
    return row


@torch.no_grad()
def prune_by(model: nn.Module, patterns: Mapping[str, Pattern], sparsity: float) -> nn.Module:
    """A copy with each named weight pruned once by magnitude in its pattern."""
    model = copy.deepcopy(model)
    for name, pattern in patterns.items():
        weight = model.get_parameter(name)
        size = pattern.cell(tuple(weight.shape))
        weight.mul_(pattern.project(weight.abs(), round((1 - sparsity) * weight.numel() / size) * size))
    return model
