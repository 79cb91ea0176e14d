"""What is planned: learned dynamics, boxes, obstacles and a goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError, NumericsError, ShapeError
from .folded import Array, Folded, fold

Box = tuple[Array, Array]
OUTSIDE = 1e3  # price of leaving a box, per unit, where a sampler may
NORMS = ("l1", "linf")


def box(lower: Sequence[float] | Array, upper: Sequence[float] | Array, what: str) -> Box:
    """Two arrays. Raises ConfigError where an end is not finite (big-M is undefined there) or the box is empty."""
    low, high = np.asarray(lower, float), np.asarray(upper, float)
    if low.shape != high.shape or low.ndim != 1:
        raise ShapeError(f"{what}: lower and upper must be vectors of one length, got {low.shape} and {high.shape}")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ConfigError(
            f"{what} is unbounded ({low} to {high}): the constants of the ReLU constraints need finite ends; give a box"
        )
    if (low > high).any():
        raise ConfigError(f"{what} is empty: lower {low} above upper {high}")
    return low, high


@dataclass(frozen=True)
class Term:
    """One use of the network: it reads `read [x; u]` and adds `write @ output` to the state.

    Args:
        read: (inputs, n + m). write: (n, outputs).
    """

    read: Array
    write: Array


@dataclass(frozen=True)
class Dynamics:
    """x' = state x + action u + sum over terms of write net(read [x; u]); all terms share one network.

    Several terms are the message passing of a graph network whose edges share weights and gates.

    Args:
        model: GatedReLUMLP, or nn.Sequential of Linear and ReLU.
        state: (n, n). action: (n, m). terms: at least one.
        domain: box of the network's inputs in which it was trained; plans stay inside it.
    Raises:
        ShapeError: matrices that do not fit. ConfigError: a model with other layers, or an unbounded domain.
    """

    model: nn.Module
    state: Array
    action: Array
    terms: tuple[Term, ...]
    domain: Box

    def __post_init__(self) -> None:
        n, m = self.action.shape
        box(*self.domain, "the domain of the model")
        for term in self.terms:
            got, wanted = (term.read.shape, term.write.shape), ((self.net.inputs, n + m), (n, len(self.net.out_bias)))
            if got != wanted:
                raise ShapeError(f"a term has read and write of shapes {got}, needed {wanted}")
        if self.state.shape != (n, n) or len(self.domain[0]) != self.net.inputs:
            raise ShapeError(
                f"state must be ({n}, {n}) and the domain have {self.net.inputs} entries, got "
                f"{self.state.shape} and {len(self.domain[0])}"
            )

    @cached_property
    def net(self) -> Folded:
        """The network, folded."""
        return fold(self.model)

    @property
    def size(self) -> int:
        return len(self.state)

    @property
    def actions(self) -> int:
        return int(self.action.shape[1])

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]], Tensor, Tensor]:
        convert = torch.from_numpy
        terms = [(convert(t.read.T.copy()), convert(t.write.T.copy())) for t in self.terms]
        return (
            convert(self.state.T.copy()),
            convert(self.action.T.copy()),
            terms,
            convert(self.domain[0]),
            convert(self.domain[1]),
        )

    def step(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Next states (B, n) of x (B, n), u (B, m), both float64, and how far inputs lie outside the domain (B,)."""
        state, action, terms, low, high = self._tensors
        both, following = torch.cat([x, u], 1), x @ state + u @ action
        outside = x.new_zeros(len(x))
        for read, write in terms:
            v = both @ read
            outside = outside + ((low - v).relu() + (v - high).relu()).sum(1)
            following = following + self.model(v) @ write
        return following, outside

    def rollout(self, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T + 1, n) from x0 (n,) under actions (B, T, m), and the sum of excursions (B,)."""
        states, outside = [x0.expand(len(u), -1)], u.new_zeros(len(u))
        for t in range(u.shape[1]):
            x, excess = self.step(states[-1], u[:, t])
            states.append(x)
            outside = outside + excess
        return torch.stack(states, 1), outside


def residual(model: nn.Module, actions: int, domain: Box) -> Dynamics:
    """x' = x + model([x; u])."""
    inputs = len(domain[0])
    n = inputs - actions
    term = Term(np.eye(inputs), np.eye(n))
    return Dynamics(model, np.eye(n), np.zeros((n, actions)), (term,), domain)


@dataclass(frozen=True)
class Goal:
    """sum over t = 1..T of weight-ed distance between state and target, the last one times `terminal`.

    Args:
        target, weight: (n,); weights >= 0, 0 for what does not matter.
        norm: "l1", or "linf" (largest weighted difference).
    Raises:
        ConfigError: another norm; "l2" would need a quadratic solver.
    """

    target: Array
    weight: Array
    terminal: float = 1.0
    norm: str = "l1"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(
                f"cost {self.norm!r}: a mixed-integer linear program takes 'l1' or 'linf' only; squared "
                "costs need MPPI, CEM or gradient planning, or a quadratic solver"
            )
        if np.shape(self.target) != np.shape(self.weight) or np.any(np.asarray(self.weight) < 0):
            raise ConfigError("a goal needs a weight >= 0 for every entry of its target")
        if not np.isfinite(self.target).all():
            raise NumericsError(f"the goal {self.target} is not finite")

    def factors(self, horizon: int) -> Array:
        return np.array([1.0] * (horizon - 1) + [self.terminal])

    def __call__(self, states: Tensor) -> Tensor:
        """(B,) costs of states (B, T + 1, n); the first state is free."""
        distance = (states[:, 1:] - torch.as_tensor(self.target)).abs() * torch.as_tensor(self.weight)
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

    dynamics: Dynamics
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
        states, outside = self.dynamics.rollout(torch.from_numpy(x0), actions)
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
