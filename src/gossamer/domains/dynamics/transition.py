"""How a state goes over into the next one: learned dynamics, in one round of messages or several."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError, ShapeError
from .folded import Array, Folded, fold
from .model import GatedReLUMLP

Box = tuple[Array, Array]


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

    @cached_property
    def _exact(self) -> nn.Module:
        """The network in float64, as states are; a GatedReLUMLP computes in the type of its input by itself."""
        return self.model if isinstance(self.model, GatedReLUMLP) else copy.deepcopy(self.model).double()

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
            following = following + self._exact(v) @ write
        return following, outside

    @property
    def rounds(self) -> tuple[Dynamics, ...]:
        """Itself, the only round of a step."""
        return (self,)


@dataclass(frozen=True)
class Chain:
    """x' is what rounds make of x one after another, each of which sees the same u: a graph network of several rounds.

    Args:
        rounds: at least one; all of one size. Rounds that are the same object share their bounds.
    Raises:
        ConfigError: none. ShapeError: rounds of several sizes.
    """

    rounds: tuple[Dynamics, ...]

    def __post_init__(self) -> None:
        if not self.rounds:
            raise ConfigError("a chain of dynamics needs at least one round")
        sizes = sorted({(r.size, r.actions) for r in self.rounds})
        if len(sizes) > 1:
            raise ShapeError(f"rounds of one chain must have one number of states and actions, got {sizes}")

    @property
    def size(self) -> int:
        return self.rounds[0].size

    @property
    def actions(self) -> int:
        return self.rounds[0].actions

    def step(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Next states (B, n), and how far the networks' inputs lie outside their domains (B,)."""
        outside = x.new_zeros(len(x))
        for each in self.rounds:
            x, excess = each.step(x, u)
            outside = outside + excess
        return x, outside


Motion = Dynamics | Chain


def rollout(motion: Motion, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, T + 1, n) from x0 (n,) under actions (B, T, m), and the sum of excursions (B,)."""
    states, outside = [x0.expand(len(u), -1)], u.new_zeros(len(u))
    for t in range(u.shape[1]):
        x, excess = motion.step(states[-1], u[:, t])
        states.append(x)
        outside = outside + excess
    return torch.stack(states, 1), outside


def residual(model: nn.Module, actions: int, domain: Box) -> Dynamics:
    """x' = x + model([x; u])."""
    inputs = len(domain[0])
    n = inputs - actions
    term = Term(np.eye(inputs), np.eye(n))
    return Dynamics(model, np.eye(n), np.zeros((n, actions)), (term,), domain)
