"""Training dynamics models and making them sparse, with the rivals that the method is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, NumericsError, ShapeError
from .model import REMOVED, Gated

Data = tuple[Tensor, Tensor]
RISE = 0.05  # of the logarithm of the price of a ReLU in a step, were all to go and none had


@dataclass(frozen=True)
class Ladder:
    """ReLUs left after each stage: K + (n - K) (1 - s/S)^power.

    Args:
        stages: S, 6 in the specification. power: 2.
    """

    stages: int = 6
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.stages < 1 or self.power <= 0:
            raise ConfigError(f"a ladder needs stages >= 1 and power > 0, got {self.stages} and {self.power}")

    def __call__(self, relus: int, target: int) -> list[int]:
        """>>> Ladder(2)(12, 4)
        [6, 4]
        """
        steps = range(1, self.stages + 1)
        return [target + round((relus - target) * (1 - s / self.stages) ** self.power) for s in steps]


def check(model: Gated, data: Data) -> None:
    """ShapeError unless data are (N, inputs) and (N, outputs) with N >= 1."""
    x, y = data
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise ShapeError(f"data must be (N, inputs) and (N, outputs), got {tuple(x.shape)} and {tuple(y.shape)}")
    if (x.shape[1], y.shape[1]) != (model.widths[0], model.widths[-1]):
        raise ShapeError(
            f"the model maps {model.widths[0]} to {model.widths[-1]} values, the data {x.shape[1]} to {y.shape[1]}"
        )


def fit(
    model: Gated,
    data: Data,
    steps: int = 3000,
    *,
    lr: float = 3e-3,
    batch: int = 256,
    seed: int = 0,
    temperature: float | None = None,
    lam: float = 0.0,
    lam_id: float = 0.3,
    keep: int | None = None,
    final: float = 0.02,
    gate_lr: float = 0.03,
    standardise: bool = True,
) -> Gated:
    """Train in place on one-step targets: Adam, mean squared error of standardised targets, cosine to final * lr.

    Args:
        data: inputs (N, in) and targets (N, out); no NaN.
        temperature: sample undecided gates at it, and train their logits; None keeps them as they are.
        lam: weight of the gate penalty (objective 3.3); the loss is in variances of the targets.
        keep: ReLUs that are wanted; lam rises while more of them are likely, and falls back to lam. With a fixed lam
            logits settle at 1 or 0 too early, and a decision that must take more neurons takes them by chance.
        gate_lr: of the logits, 0.03, our choice for short stages.
        lam_id: price of an identity neuron in units of a ReLU.
    Raises:
        ShapeError, NumericsError: of the data; NumericsError also where it diverges. ConfigError: steps < 0 or
            a learning rate that is not positive.
    """
    check(model, data)
    if steps < 0 or not lr > 0:
        raise ConfigError(f"training needs steps >= 0 and lr > 0, got {steps} and {lr}")
    x, y = data
    if standardise:
        model.standardise(x, y)
    generator = torch.Generator().manual_seed(seed)
    logits = [part.logits for part in model.parts()]
    weights = [p for p in model.parameters() if all(p is not own for own in logits)]
    groups: list[dict[str, Any]] = [{"params": weights, "peak": lr}]
    if temperature is not None:
        groups.append({"params": logits, "peak": gate_lr})
    optimiser = torch.optim.Adam(groups, lr, fused=True)
    price = lam
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / steps)))
        rows = torch.randint(len(x), (batch,), generator=generator)
        error = (model(x[rows], temperature, generator) - y[rows]) / model.out_scale
        loss = error.square().mean()
        if lam:
            price = lam if keep is None else max(lam, price * math.exp(RISE * model.surplus(keep)))
            loss = loss + price * model.penalty(lam_id)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if steps and not math.isfinite(loss.item()):
        raise NumericsError(f"the training of the dynamics model diverged at lr={lr}; lower it")
    return model


@torch.no_grad()
def rmse(model: Callable[[Tensor], Tensor], data: Data) -> float:
    """Root mean squared error per output, in the targets' unit."""
    return float(F.mse_loss(model(data[0]), data[1]).sqrt())


@dataclass(frozen=True)
class Budget:
    """Steps of a sparsification: per stage with gates, per stage after a decision, and at the end."""

    gates: int = 500
    settle: int = 150
    tune: int = 4000

    def total(self, stages: int) -> int:
        return stages * (self.gates + self.settle) + self.tune


def sparsify(
    model: Gated,
    data: Data,
    relus: int,
    *,
    schedule: Ladder | None = None,
    lam: float = 2e-3,
    lam_id: float = 0.3,
    budget: Budget | None = None,
    lr: float = 3e-3,
    seed: int = 0,
    rank: Callable[[Gated, Data], Tensor] | None = None,
) -> Gated:
    """A copy of a trained model with `relus` ReLUs left, by progressive discretisation (specification 3.4).

    Args:
        relus: target, 0 <= relus <= those of the model.
        rank: a rival's score (hidden,): no gates are trained, and neurons of the lowest score are removed.
    Raises:
        ConfigError: a target outside that range.
    """
    model = copy.deepcopy(model)
    for step in steps_down(
        model.relus, data, relus, schedule=schedule, lam=lam, lam_id=lam_id, budget=budget, lr=lr, seed=seed, rank=rank
    ):
        step(model)
    return model


def steps_down(
    present: int,
    data: Data,
    relus: int,
    *,
    schedule: Ladder | None = None,
    lam: float = 2e-3,
    lam_id: float = 0.3,
    budget: Budget | None = None,
    lr: float = 3e-3,
    seed: int = 0,
    rank: Callable[[Gated, Data], Tensor] | None = None,
) -> list[Callable[[Gated], None]]:
    """What `sparsify` does to a model of `present` ReLUs in place, one call a stage and one at the end.

    Each call has a seed and an optimiser of its own, so that a model kept after one goes on with the next to the same
    bits.
    """
    schedule, budget = schedule or Ladder(), budget or Budget()
    if not 0 <= relus <= present:
        raise ConfigError(f"relus={relus}: the model has {present}; give 0 to {present}")
    plain: dict[str, Any] = {"lr": lr, "final": 1.0, "standardise": False}

    def down(stage: int, keep: int, model: Gated) -> None:
        key = 1000 * seed + 2 * stage
        if rank is None:
            fit(model, data, budget.gates, seed=key, temperature=1.0, lam=lam, lam_id=lam_id, keep=keep, **plain)
            model.decide(keep)
        else:
            fit(model, data, budget.gates, seed=key, **plain)
            model.settle(rank(model, data), torch.full_like(model.joined("states"), REMOVED), keep)
        fit(model, data, budget.settle, seed=key + 1, **plain)

    def tune(model: Gated) -> None:
        fit(model, data, budget.tune, lr=lr, seed=1000 * seed + 999, standardise=False)

    return [*(partial(down, stage, keep) for stage, keep in enumerate(schedule(present, relus))), tune]


@torch.no_grad()
def magnitude(model: Gated, data: Data) -> Tensor:
    """(hidden,) norm of a neuron's incoming weights times that of its outgoing ones."""
    pairs = [pair for part in model.parts() for pair in pairwise(part.layers)]
    return torch.cat([a.weight.norm(dim=1) * b.weight.norm(dim=0) for a, b in pairs])  # type: ignore[operator]
