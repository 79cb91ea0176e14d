"""The shrinkage testbed: one training of a perceptron with sparse hidden layers on the shifted digits, from scratch.

Protocol of the small reproduction of iterative soft shrinkage: 144-300-100-10 with batch normalisation and a dense
output layer, Adam with learning rate 2e-3 and betas (0.9, 0.99), batches of 128, 1500 steps: a constant rate for the
first half, in which masks move, then a cosine down to 0. Finished trainings are kept on disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.protocol import Context
from gossamer.claims.testbeds import one_thread
from gossamer.data import Batches
from gossamer.data.digits import shifted_digits
from gossamer.errors import NumericsError
from gossamer.metrics.classification import accuracy
from gossamer.models.mlp import mlp
from gossamer.recipes.shrinkage import jump_at_freeze
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

STEPS = 1500
PRUNING = 0.5
RATE = 2e-3
HIDDEN_LAYERS = Select(only=("fc*",))  # the head stays dense
TOTAL = 144 * 300 + 300 * 100


def train_shrinkage(
    recipe: Recipe | None, seed: int, *, pretrained: bool = False, steps: int = STEPS
) -> dict[str, Any]:
    """Train and test once; the result is cached on disk.

    Args:
        recipe: the method; None trains dense.
        seed: of initial weights and data order.
        pretrained: first a dense training of as many steps under the same schedule (L1-norm: twice the budget).
    Returns:
        {"accuracy", "kept" (entries), "layers" (name -> kept entries), "zeros_exact", "jump" (of `jump_at_freeze` on
        the test images one step before the mask is final; None without a freeze), "seconds"}.
    Raises:
        NumericsError: the loss is NaN or infinite.
    """
    text = recipe.to_yaml() if recipe else None
    settings = {"recipe": text, "seed": seed, "pretrained": pretrained, "steps": steps}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(recipe, seed, pretrained, steps)

    return cell("gossamer.claims.shrinkage_testbed", settings, compute)


Arm = tuple[Recipe | None, bool]


def train_shrinkage_arms(ctx: Context, arms: dict[str, Arm], least: int = 3) -> dict[str, list[dict[str, Any]]]:
    """`train_shrinkage` of every arm (recipe, pretrained) over the seeds that `ctx` allows: name -> rows by seed."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in ctx.each_seed(least):
        for name, (recipe, pretrained) in arms.items():
            row = train_shrinkage(recipe, seed, pretrained=pretrained)
            ctx.say(f"  {name}, seed {seed}: accuracy {row['accuracy']:.4f} ({row['seconds']:.1f} s)")
            rows[name].append(row)
    return rows


def _train(recipe: Recipe | None, seed: int, pretrained: bool, steps: int) -> dict[str, Any]:
    started = time.perf_counter()
    data = shifted_digits(batch_size=128, seed=seed)
    x, y = data.test.tensors()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(hidden=(300, 100))
    if pretrained:
        _loop(model, Sparsifier(model, _adam(model), Recipe(), steps), data.train, steps)
    sparsifier = Sparsifier(model, _adam(model), recipe or Recipe(), steps, seed=seed)
    jump: list[dict[str, float]] = []
    freeze = getattr(sparsifier.recipe.family, "freeze", None)

    def before(step: int) -> None:
        if freeze is not None and step + 1 == round(freeze * steps):
            jump.append(jump_at_freeze(model.eval(), sparsifier.entry_masks, lambda net: F.cross_entropy(net(x), y)))
            model.train()

    _loop(model, sparsifier, data.train, steps, before)
    masks = {name: mask.clone() for name, mask in sparsifier.entry_masks.items()}
    weights = dict(sparsifier.finalize().named_parameters())
    model.eval()
    with torch.no_grad():
        final = accuracy(model(x), y)
    return {
        "accuracy": final,
        "kept": sum(int(mask.sum()) for mask in masks.values()) if masks else TOTAL,
        "layers": {name: int(mask.sum()) for name, mask in masks.items()},
        "zeros_exact": all(not bool(weights[name][~mask].count_nonzero()) for name, mask in masks.items()),
        "jump": jump[0] if jump else None,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))


def _loop(
    model: nn.Module,
    sparsifier: Sparsifier,
    batches: Batches,
    steps: int,
    before: Callable[[int], None] = lambda step: None,
) -> None:
    optimizer = sparsifier.optimizer
    for step in range(steps):
        t = max(0.0, (step / steps - PRUNING) / (1 - PRUNING))
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * t)) / 2
        before(step)
        inputs, labels = batches.batch(step)
        loss: Tensor = F.cross_entropy(model(inputs), labels)
        if step % 100 == 0 and not math.isfinite(loss.item()):
            raise NumericsError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sparsifier.remove()
