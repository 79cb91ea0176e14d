"""What is planned: dynamics, boxes, obstacles and a goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError, NumericsError, ShapeError
from .folded import Array
from .transition import Box, Motion, box, rollout

OUTSIDE = 1e3  # price of leaving a box, per unit, where a sampler may
NORMS = ("l1", "linf")


@dataclass(frozen=True)
class Goal:
    """sum over t = 1..T of weight-ed distance between state and target, the last one times `terminal`.

    Args:
        target, weight: (n,); weights >= 0, 0 for what does not matter.
        norm: "l1", or "linf" (largest weighted difference).
        band: (n,) distances up to which an entry costs nothing; None: 0. With it the goal is a region.
    Raises:
        ConfigError: another norm, a negative weight or band; "l2" would need a quadratic solver.
    """

    target: Array
    weight: Array
    terminal: float = 1.0
    norm: str = "l1"
    band: Array | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(
                f"cost {self.norm!r}: a mixed-integer linear program takes 'l1' or 'linf' only; squared "
                "costs need MPPI, CEM or gradient planning, or a quadratic solver"
            )
        if np.shape(self.target) != np.shape(self.weight) or np.any(np.asarray(self.weight) < 0):
            raise ConfigError("a goal needs a weight >= 0 for every entry of its target")
        if self.band is not None and (np.shape(self.band) != np.shape(self.target) or np.any(self.band < 0)):
            raise ConfigError("the band of a goal needs a distance >= 0 for every entry of its target")
        if not np.isfinite(self.target).all():
            raise NumericsError(f"the goal {self.target} is not finite")

    @property
    def free(self) -> Array:
        """The band, zeros where there is none."""
        return np.zeros(len(self.target)) if self.band is None else np.asarray(self.band, float)

    def factors(self, horizon: int) -> Array:
        return np.array([1.0] * (horizon - 1) + [self.terminal])

    def __call__(self, states: Tensor) -> Tensor:
        """(B,) costs of states (B, T + 1, n); the first state is free."""
        distance = (states[:, 1:] - torch.as_tensor(self.target)).abs() - torch.as_tensor(self.free)
        distance = distance.relu() * torch.as_tensor(self.weight)
        each = distance.sum(2) if self.norm == "l1" else distance.amax(2)
        return each @ torch.from_numpy(self.factors(each.shape[1]))


@dataclass(frozen=True)
class Obstacle:
    """A box that read @ x must stay out of after every step.

    Args:
        read: (d, n). lower, upper: (d,).
    """

    read: Array
    lower: Array
    upper: Array

    def depth(self, states: Tensor) -> Tensor:
        """(B,) summed depth inside the box of states (B, T + 1, n), 0 where clear."""
        v = states[:, 1:] @ torch.as_tensor(self.read).T
        inside = torch.minimum(v - torch.as_tensor(self.lower), torch.as_tensor(self.upper) - v).amin(2)
        return inside.relu().sum(1)


@dataclass(frozen=True)
class Problem:
    """A planning problem, the same for every planner.

    Args:
        horizon: T >= 1. u_box: of the actions. x_box: of the states after every step, or None. obstacles: see there.
    Raises:
        ConfigError: a horizon below 1 or an unbounded box. ShapeError: a box or goal of another size.
    """

    dynamics: Motion
    horizon: int
    u_box: Box
    goal: Goal
    x_box: Box | None = None
    obstacles: tuple[Obstacle, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ConfigError(f"horizon={self.horizon}: plan at least 1 step")
        box(*self.u_box, "the action box")
        if self.x_box is not None:
            box(*self.x_box, "the state box")
        sizes = (len(self.u_box[0]), len(self.goal.target), len(self.x_box[0]) if self.x_box else self.dynamics.size)
        if sizes != (self.dynamics.actions, self.dynamics.size, self.dynamics.size):
            raise ShapeError(
                f"actions, goal and state box have sizes {sizes}; the dynamics have "
                f"{self.dynamics.actions} actions and {self.dynamics.size} states"
            )

    def start(self, x0: Sequence[float] | Array) -> Array:
        """x0 as an array. Raises ShapeError, NumericsError, or ConfigError where it lies outside the state box."""
        x = np.asarray(x0, float)
        if x.shape != (self.dynamics.size,):
            raise ShapeError(f"the start has shape {x.shape}, the dynamics {self.dynamics.size} states")
        if not np.isfinite(x).all():
            raise NumericsError(f"the start {x} holds NaN or infinity")
        if self.x_box is not None and ((x < self.x_box[0]) | (x > self.x_box[1])).any():
            raise ConfigError(f"the start {x} lies outside the state box {self.x_box[0]} to {self.x_box[1]}")
        return x

    def evaluate(self, x0: Array, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Costs (B,) and excursions (B,) of actions (B, T, m) on the model, and the states (B, T + 1, n)."""
        states, outside = rollout(self.dynamics, torch.from_numpy(x0), actions)
        if self.x_box is not None:
            low, high = map(torch.from_numpy, self.x_box)
            outside = outside + ((low - states[:, 1:]).relu() + (states[:, 1:] - high).relu()).sum((1, 2))
        for obstacle in self.obstacles:
            outside = outside + obstacle.depth(states)
        return self.goal(states), outside, states


@dataclass(frozen=True)
class Plan:
    """What a planner found.

    Args:
        actions: (T, m). states: (T + 1, n), the model's rollout. cost: of that rollout.
        bound: certified lower bound of any plan's cost (-inf for samplers). status: "optimal", "limit" (best
            incumbent), "warm start" (no incumbent in time), "infeasible" (the safe action) or "sampled".
        outside: summed violation of boxes and obstacles by the rollout. blame: constraints behind "infeasible".
    """

    actions: Array
    states: Array
    cost: float
    bound: float
    status: str
    seconds: float
    outside: float = 0.0
    binaries: int = 0
    blame: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """(cost - bound) / cost, 0 at proven optimality."""
        return max(0.0, self.cost - self.bound) / max(abs(self.cost), 1e-9)
