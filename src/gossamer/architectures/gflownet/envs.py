"""Environments: states are rows of small integers, built step by step, and every object has a way back to the start.

Actions 0 ... A - 2 build; the last one stops. Backward action i undoes what action i did.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ...errors import ConfigError
from ..slots import OneOf
from ..space import Architecture, SearchSpace

LARGEST_TABLE = 2_000_000
LARGEST_CHECKED = 20_000  # states that `check_env` looks at, all of them


@runtime_checkable
class Env(Protocol):
    """A graph of states without cycles.

    Attributes:
        actions: A, stop included. size: number of states. longest: steps of the longest way, without the stop.
        width: length of a state.
    """

    actions: int
    size: int
    longest: int
    width: int

    def start(self, count: int) -> Tensor:
        """(count, width) int64: copies of the first state."""

    def legal(self, states: Tensor) -> Tensor:
        """(n, A) bool: what may be done."""

    def step(self, states: Tensor, actions: Tensor) -> Tensor:
        """States after building actions (n,); a stop leaves the state as it is."""

    def undoable(self, states: Tensor) -> Tensor:
        """(n, A - 1) bool: which actions may have led here."""

    def undo(self, states: Tensor, actions: Tensor) -> Tensor:
        """States before building actions (n,)."""

    def index(self, states: Tensor) -> Tensor:
        """(n,) int64 in 0 ... size - 1, one for each state; used by tables."""

    def features(self, states: Tensor) -> Tensor:
        """(n, F) float32 for networks."""

    def all_states(self) -> Tensor:
        """Every state, parents before children."""


def check_table(env: Env) -> None:
    """Raise ConfigError where the states are too many for a table."""
    if env.size > LARGEST_TABLE:
        raise ConfigError(f"{env.size} states are too many for a table; {LARGEST_TABLE} are the limit")


def check_env(env: Env) -> None:
    """Look at every state of an environment of at most 20,000, else at the first one alone.

    Raises:
        ConfigError: a state where nothing may be done, an object that no way leads to, or ways without an end; the
            state is named.
    """
    kind = type(env).__name__
    states = env.all_states() if env.size <= LARGEST_CHECKED else env.start(1)
    stuck = ~env.legal(states).any(1)
    if bool(stuck.any()):
        state = states[stuck][0].tolist()
        raise ConfigError(f"{kind}: in state {state} nothing is legal, not even the stop; allow it or leave it out")
    if env.size > LARGEST_CHECKED:
        return
    lost = env.legal(states)[:, -1] & ~_reached(env)[env.index(states)]
    if bool(lost.any()):
        raise ConfigError(f"{kind}: no way leads from the start to the object {states[lost][0].tolist()}")


def _reached(env: Env) -> Tensor:
    """(size,) bool: the states that some way from the start passes."""
    seen = torch.zeros(env.size, dtype=torch.bool)
    states = env.start(1)
    for _ in range(env.longest + 1):
        seen[env.index(states)] = True
        row, action = env.legal(states)[:, :-1].nonzero(as_tuple=True)
        if not len(row):
            return seen
        states = env.step(states[row], action).unique(dim=0)
    raise ConfigError(
        f"{type(env).__name__}: after {env.longest} steps, the longest way it names, {states[0].tolist()} can still "
        "be built on; ways must end"
    )


class HyperGrid:
    """Cells of a grid with `side` places along each of `dims` axes; an action moves one place up one axis.

    Args:
        edge_stops: a coordinate at the edge allows nothing but the stop (the paper's multi-objective grids).
    Raises:
        ConfigError: fewer than 2 places or 1 axis.
    Source: Bengio et al. 2021; Chen & Mauch 2024, section 5.1.
    """

    def __init__(self, side: int = 8, dims: int = 2, *, edge_stops: bool = False) -> None:
        if side < 2 or dims < 1:
            raise ConfigError(f"a grid needs at least 2 places and 1 axis, got {side} and {dims}")
        self.side, self.width, self.edge_stops = side, dims, edge_stops
        self.actions, self.size, self.longest = dims + 1, side**dims, dims * (side - 1)

    def start(self, count: int) -> Tensor:
        return torch.zeros(count, self.width, dtype=torch.long)

    def legal(self, states: Tensor) -> Tensor:
        moves = states < self.side - 1
        if self.edge_stops:
            moves = moves & moves.all(1, keepdim=True)
        return torch.cat([moves, torch.ones_like(moves[:, :1])], 1)

    def step(self, states: Tensor, actions: Tensor) -> Tensor:
        return states + torch.nn.functional.one_hot(actions, self.actions)[:, :-1]

    def undoable(self, states: Tensor) -> Tensor:
        can = states > 0
        if self.edge_stops:  # the parent must not lie on an edge itself
            axes = torch.eye(self.width, dtype=torch.long)
            parents = states[:, None] - axes
            can = can & (parents < self.side - 1).all(2)
        return can

    def undo(self, states: Tensor, actions: Tensor) -> Tensor:
        return states - torch.nn.functional.one_hot(actions, self.width)

    def index(self, states: Tensor) -> Tensor:
        return (states * self.side ** torch.arange(self.width)).sum(1)

    def features(self, states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(states, self.side).flatten(1).float()

    def all_states(self) -> Tensor:
        check_table(self)
        places = torch.cartesian_prod(*[torch.arange(self.side)] * self.width).reshape(-1, self.width)
        if self.edge_stops:  # cells that only lie behind an edge are never reached
            on_edge = (places == self.side - 1).sum(1)
            places = places[(on_edge == 0) | ((on_edge == 1) & self.undoable(places).any(1))]
        return places[places.sum(1).argsort(stable=True)]

    def coordinates(self, states: Tensor) -> Tensor:
        """States as points of [0, 1]^dims."""
        return states.double() / (self.side - 1)


class Sequences:
    """Words of `length` letters of an alphabet, written from left to right."""

    def __init__(self, letters: int, length: int) -> None:
        if letters < 2 or length < 1:
            raise ConfigError(f"sequences need at least 2 letters and length 1, got {letters} and {length}")
        self.letters, self.width = letters, length
        self.actions, self.size, self.longest = letters + 1, (letters + 1) ** length, length

    def start(self, count: int) -> Tensor:
        return torch.full((count, self.width), -1)

    def _written(self, states: Tensor) -> Tensor:
        return (states >= 0).sum(1)

    def legal(self, states: Tensor) -> Tensor:
        full = (self._written(states) == self.width)[:, None]
        return torch.cat([(~full).expand(-1, self.letters), full], 1)

    def step(self, states: Tensor, actions: Tensor) -> Tensor:
        place = torch.nn.functional.one_hot(self._written(states), self.width + 1)[:, :-1].bool()
        writes = place & (actions < self.letters)[:, None]
        return torch.where(writes, actions[:, None], states)

    def undoable(self, states: Tensor) -> Tensor:
        last = self._written(states) - 1
        letter = states.gather(1, last.clamp_min(0)[:, None])
        return (torch.arange(self.letters) == letter) & (last >= 0)[:, None]

    def undo(self, states: Tensor, actions: Tensor) -> Tensor:
        return states.scatter(1, (self._written(states) - 1)[:, None], -1)

    def index(self, states: Tensor) -> Tensor:
        return ((states + 1) * (self.letters + 1) ** torch.arange(self.width)).sum(1)

    def features(self, states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(states + 1, self.letters + 1).flatten(1).float()

    def all_states(self) -> Tensor:
        check_table(self)
        found, layer = [self.start(1)], self.start(1)
        for _ in range(self.width):
            copies = layer.repeat_interleave(self.letters, 0)
            layer = self.step(copies, torch.arange(self.letters).repeat(len(layer)))
            found.append(layer)
        return torch.cat(found)


class SlotFill:
    """Slots of a search space, filled in any order with any of their options: cells, layer ratios, N:M choices.

    Args:
        space: slots of kind `OneOf`, without a rule.
    Raises:
        ConfigError: another kind of slot, or a rule.
    """

    def __init__(self, space: SearchSpace) -> None:
        if space.rule is not None or not all(isinstance(slot, OneOf) for slot in space.slots):
            raise ConfigError("a GFlowNet fills slots of options without a rule; put the rule into the objective")
        self.space = space
        self.counts = [slot.count for slot in space.slots]
        self.width, self.longest = len(self.counts), len(self.counts)
        self.actions = sum(self.counts) + 1
        self._slot = torch.repeat_interleave(torch.arange(self.width), torch.tensor(self.counts))
        self._option = torch.cat([torch.arange(count) for count in self.counts])
        bases = [count + 1 for count in self.counts]
        self.size = math.prod(bases)  # beyond 64 bits for a space of cells
        self._strides = torch.cat([torch.ones(1, dtype=torch.long), torch.tensor(bases).cumprod(0)[:-1]])

    def start(self, count: int) -> Tensor:
        return torch.full((count, self.width), -1)

    def legal(self, states: Tensor) -> Tensor:
        empty = (states < 0)[:, self._slot]
        return torch.cat([empty, ~empty.any(1, keepdim=True)], 1)

    def step(self, states: Tensor, actions: Tensor) -> Tensor:
        building = actions < len(self._slot)
        chosen = actions.clamp_max(len(self._slot) - 1)
        filled = states.scatter(1, self._slot[chosen][:, None], self._option[chosen][:, None])
        return torch.where(building[:, None], filled, states)

    def undoable(self, states: Tensor) -> Tensor:
        return states[:, self._slot] == self._option

    def undo(self, states: Tensor, actions: Tensor) -> Tensor:
        return states.scatter(1, self._slot[actions][:, None], -1)

    def index(self, states: Tensor) -> Tensor:
        return ((states + 1) * self._strides).sum(1)

    def features(self, states: Tensor) -> Tensor:
        parts = [torch.nn.functional.one_hot(states[:, i] + 1, c + 1) for i, c in enumerate(self.counts)]
        return torch.cat(parts, 1).float()

    def all_states(self) -> Tensor:
        check_table(self)
        places = torch.cartesian_prod(*[torch.arange(-1, count) for count in self.counts]).reshape(-1, self.width)
        return places[(places >= 0).sum(1).argsort(stable=True)]

    def architecture(self, state: Tensor) -> Architecture:
        """A full state as an architecture of the space."""
        return tuple(state.tolist())

    def state(self, architecture: Architecture) -> Tensor:
        """An architecture as a full state."""
        return torch.tensor(architecture)
