"""The one search space of this room: discrete decisions with a rule for which combinations are legal.

Random search, DASS and order-preserving GFlowNets search the same object, through the same counted evaluation
(`Evaluator`), so that their figures can be compared at equal cost.

    >>> space = SearchSpace((OneOf("first", ("skip", "conv")), OneOf("second", ("skip", "conv", "pool"))))
    >>> space.size, space.describe((1, 2))
    (6, {'first': 'conv', 'second': 'pool'})
    >>> space.decode(space.encode((1, 2)))
    (1, 2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np

from ..errors import ConfigError, ShapeError
from .slots import OneOf, Rng, Slot, Value

Architecture = tuple[Value, ...]
Rule = Callable[[Architecture], bool]

LEAST, LOOKED_AT, TRIES = 2, 100_000, 10_000


@dataclass(frozen=True)
class View:
    """An architecture as a graph: names of the nodes, and edges (from, to, label) by the nodes' positions."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class SearchSpace:
    """All legal combinations of the slots' values; an architecture is a tuple with one value per slot.

    Args:
        slots: the decisions, in the order of an architecture's values.
        rule: says whether a combination is legal; None: all are.
        draw: how an architecture looks as a graph; None: a chain of its slots.
        name: for messages.
    Raises:
        ConfigError: no slot, two slots of one name, or fewer than two legal architectures (where there are
            more than 100,000 combinations, only the first 100,000 are looked at, and random ones after them).
    """

    slots: tuple[Slot, ...]
    rule: Rule | None = None
    draw: Callable[[Architecture], View] | None = None
    name: str = "search space"

    def __post_init__(self) -> None:
        names = [slot.name for slot in self.slots]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"{self.name} needs slots of different names, got {names}")
        seen: set[Architecture] = set()
        for architecture in self._some():
            seen.add(architecture)
            if len(seen) == LEAST:
                return
        many = "one architecture alone" if seen else "no legal architecture"
        raise ConfigError(f"{self.name} holds {many}: there is nothing to search; add options or relax its rule")

    def _some(self) -> Iterator[Architecture]:
        """Legal architectures, until the search for them is given up."""
        yield from filter(self.is_legal, islice(self._product(), LOOKED_AT))
        if self.combinations > LOOKED_AT:
            rng = np.random.default_rng(0)
            drawn = (self._draw(rng) for _ in range(TRIES))
            yield from filter(self.is_legal, drawn)

    def _product(self) -> Iterator[Architecture]:
        """All combinations, the last slot running fastest, without holding any slot's values in memory."""

        def extend(position: int) -> Iterator[Architecture]:
            if position == len(self.slots):
                yield ()
                return
            for value in self.slots[position].values():
                yield from ((value, *rest) for rest in extend(position + 1))

        if all(isinstance(slot, OneOf) for slot in self.slots):
            return product(*(range(slot.count) for slot in self.slots))
        return extend(0)

    # ------------------------------------------------------------------ what it holds

    @property
    def combinations(self) -> int:
        """Combinations of values, legal or not."""
        return math.prod(slot.count for slot in self.slots)

    @property
    def size(self) -> int:
        """Number of legal architectures; with a rule they are enumerated.

        Raises:
            ConfigError: a rule, and more than 100,000 combinations.
        """
        if self.rule is None:
            return self.combinations
        if self.combinations > LOOKED_AT:
            raise ConfigError(f"{self.name} has {self.combinations} combinations under a rule: too many to count")
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Architecture]:
        """All legal architectures, the last slot running fastest."""
        return filter(self.is_legal, self._product())

    def is_legal(self, architecture: Architecture) -> bool:
        """Whether the rule allows it; the values themselves are taken for granted."""
        return self.rule is None or self.rule(architecture)

    def check(self, architecture: Any) -> Architecture:
        """`architecture` itself if it belongs to this space.

        Raises:
            ShapeError: a number of values that differs from the number of slots.
            ConfigError: a value that its slot does not have, or a combination that the rule forbids.
        """
        if not isinstance(architecture, tuple) or len(architecture) != len(self.slots):
            raise ShapeError(
                f"an architecture of {self.name} is a tuple of {len(self.slots)}, got {architecture!r:.80}"
            )
        for slot, value in zip(self.slots, architecture, strict=True):
            if not slot.holds(value):
                raise ConfigError(f"{value!r:.60} is no value of {slot}")
        if not self.is_legal(architecture):
            raise ConfigError(f"{self.describe(architecture)} is not legal in {self.name}")
        return architecture

    # ------------------------------------------------------------------ moving in it

    def sample(self, rng: Rng | int) -> Architecture:
        """A random legal architecture, all equally likely.

        Args:
            rng: a numpy generator, or a seed for a fresh one.
        Raises:
            ConfigError: 10,000 draws broke the rule.
        """
        source = np.random.default_rng(rng) if isinstance(rng, int) else rng
        for _ in range(TRIES):
            drawn = self._draw(source)
            if self.is_legal(drawn):
                return drawn
        raise ConfigError(f"{TRIES} random draws from {self.name} were all illegal; state its rule as slots instead")

    def _draw(self, rng: Rng) -> Architecture:
        return tuple(slot.sample(rng) for slot in self.slots)

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """The legal architectures that differ in one slot: another option, or one thing exchanged."""
        self.check(architecture)
        for place, (slot, value) in enumerate(zip(self.slots, architecture, strict=True)):
            for other in slot.neighbours(value):  # type: ignore[arg-type]  # the check above pairs them
                moved = (*architecture[:place], other, *architecture[place + 1 :])
                if self.is_legal(moved):
                    yield moved

    # ------------------------------------------------------------------ forms of an architecture

    @property
    def width(self) -> int:
        """Length of `encode`'s vector."""
        return sum(slot.width for slot in self.slots)

    def encode(self, architecture: Architecture) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(width,) float32 of zeros and ones: one-hot options and kept things, slot after slot."""
        self.check(architecture)
        parts = [slot.encode(value) for slot, value in zip(self.slots, architecture, strict=True)]  # type: ignore[arg-type]
        return np.concatenate(parts)

    def decode(self, code: np.ndarray[Any, Any]) -> Architecture:
        """The architecture of a vector of scores (width,): in each slot the largest wins. Inverts `encode`.

        Raises:
            ShapeError: another length. ConfigError: the winners are not legal together.
        """
        code = np.asarray(code)
        if code.shape != (self.width,):
            raise ShapeError(f"an encoding of {self.name} has shape ({self.width},), got {code.shape}")
        parts = np.split(code, np.cumsum([slot.width for slot in self.slots])[:-1])
        return self.check(tuple(slot.decode(part) for slot, part in zip(self.slots, parts, strict=True)))

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """Slot -> option or list of kept indices, as JSON values; `parse` reads it."""
        return {slot.name: slot.label(value) for slot, value in zip(self.slots, architecture, strict=True)}  # type: ignore[arg-type]

    def parse(self, labels: Mapping[str, Any]) -> Architecture:
        """The architecture that `describe` wrote. Raises ConfigError or ShapeError naming what does not fit."""
        names = [slot.name for slot in self.slots]
        if set(labels) != set(names):
            raise ConfigError(f"an architecture of {self.name} names {names}, got {sorted(labels)}")
        return self.check(tuple(slot.parse(labels[slot.name]) for slot in self.slots))

    def view(self, architecture: Architecture) -> View:
        """The architecture as a graph."""
        self.check(architecture)
        if self.draw is not None:
            return self.draw(architecture)
        nodes = ("input", *(slot.name for slot in self.slots))
        labels = (slot.label(value) for slot, value in zip(self.slots, architecture, strict=True))  # type: ignore[arg-type]
        return View(nodes, tuple((i, i + 1, str(label)) for i, label in enumerate(labels)))
