"""Small data and models that train in a fraction of a second; a module that fresh processes can import."""

import inspect
import os
import signal
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gossamer import recipes
from gossamer.data.dataset import Batches
from gossamer.maths.schedules import Steps
from gossamer.training import Classification, OptimConfig, TrainConfig, fit


@dataclass
class Parts:
    train: Any
    val: Any = None
    test: Any = None


def toy_data(batch_size: int = 16, samples: int = 96, features: int = 8, classes: int = 4) -> Parts:
    """Points around class centres, split into train, val and test."""
    draw = torch.Generator().manual_seed(3)
    centres = torch.randn(classes, features, generator=draw) * 2
    labels = torch.arange(samples) % classes
    points = centres[labels] + torch.randn(samples, features, generator=draw)
    cut, end = samples // 2, 3 * samples // 4
    return Parts(
        Batches([points[:cut], labels[:cut]], batch_size, shuffle=True, seed=1),
        Batches([points[cut:end], labels[cut:end]], batch_size),
        Batches([points[end:], labels[end:]], batch_size),
    )


def toy_model(norm: bool = True, dropout: float = 0.2, seed: int = 0) -> nn.Module:
    """8 - 16 - 12 - 4, with what makes resuming hard: batch statistics and random dropout."""
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def recipe_of(name: str):
    """A recipe that does much in 40 steps."""
    options: dict[str, Any] = {"every": 4} if name in ("gmp", "granet", "set", "rigl", "itop", "g2gnet") else {}
    if name == "grasp":
        options["samples"] = 2
    if name == "synflow":
        options["rounds"] = 5
    if "sparsity" in inspect.signature(recipes.RECIPES[name]).parameters:
        options["sparsity"] = 0.7
    if name.startswith(("mdgf", "sdgf")):
        options |= {"n": 1, "m": 4}
    recipe = recipes.RECIPES[name](**options)
    if name == "sdgf_geometric":  # its first groups of 32 fit no layer of the toy model; what is left over stays dense
        rows = tuple((time, replace(pattern, tail="keep")) for time, pattern in recipe.pattern.rows)
        recipe = recipe.replace(pattern=Steps(rows))
    return recipe


def toy_config(optimizer: str = "sgd", **changes: Any) -> TrainConfig:
    optim = OptimConfig(name=optimizer, lr=0.05 if optimizer in ("sgd", "nesterov") else 0.01, warmup=0.1)
    values = {"steps": 40, "optim": optim, "validate_every": 10, "checkpoint_every": 7, "log_every": 5}
    return TrainConfig(**(values | changes))


class Stopping(Classification):
    """Sends `signum` to its own process when the loss is computed for the n-th time."""

    def __init__(self, model: nn.Module, at: int, signum: int) -> None:
        super().__init__(model)
        self.at, self.signum, self.calls = at, signum, 0

    def loss(self, model, batch):
        if model.training:
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), self.signum)
        return super().loss(model, batch)


def train_toy(folder: str, recipe: str = "granet", at: int = 0, signum: int = signal.SIGKILL) -> dict:
    """Train the toy, resuming what is there; ends itself at the `at`-th loss."""
    torch.set_num_threads(1)
    task = Stopping(toy_model(), at, signum)
    return fit(task, toy_data(), recipe_of(recipe), toy_config(), run=folder, resume=True)
