"""The two kinds of decision that an architecture is made of: one of several options, or k of n things."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, pairwise, product
from typing import Any

import numpy as np

from ..errors import ConfigError, ShapeError, unknown

Value = int | tuple[int, ...]
Rng = np.random.Generator


@dataclass(frozen=True)
class OneOf:
    """Exactly one of `options`; a value is the option's index.

    Raises:
        ConfigError: no name, no option, or two options of one name.
    """

    name: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.options or len(set(self.options)) != len(self.options):
            raise ConfigError(f"slot {self.name!r} needs a name and options that differ, got {self.options}")

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.options)

    @property
    def width(self) -> int:
        """Length of the encoding."""
        return len(self.options)

    def holds(self, value: Any) -> bool:
        """Whether `value` is a legal value of this slot."""
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self.count

    def values(self) -> Iterator[int]:
        """All values in order."""
        return iter(range(self.count))

    def sample(self, rng: Rng) -> int:
        """A value, all equally likely."""
        return int(rng.integers(self.count))

    def neighbours(self, value: int) -> Iterator[int]:
        """The other options."""
        return (other for other in range(self.count) if other != value)

    def encode(self, value: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One-hot, (options,) float32."""
        return np.eye(self.count, dtype=np.float32)[value]

    def decode(self, code: np.ndarray[Any, Any]) -> int:
        """The option of the largest entry; the first of equal ones."""
        return int(code.argmax())

    def label(self, value: int) -> str:
        """What a person reads."""
        return self.options[value]

    def parse(self, text: Any) -> int:
        """The value of a label. Raises ConfigError with the nearest known options."""
        if text not in self.options:
            raise unknown(f"option of {self.name}", str(text), self.options)
        return self.options.index(text)


@dataclass(frozen=True)
class Subset:
    """Exactly `keep` of every `of / blocks` neighbours among `of` things (hidden units, weights).

    A value is the ascending tuple of kept indices. One block is a plain subset; blocks of m with keep = n are n:m.

    Raises:
        ConfigError: no name, blocks that do not divide, or keep outside 1 ... size of a block.
    """

    name: str
    of: int
    keep: int
    blocks: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.of % self.blocks:
            raise ConfigError(f"slot {self.name!r}: {self.of} things cannot be cut into {self.blocks} equal blocks")
        if not self.name or not 1 <= self.keep <= self.side:
            raise ConfigError(f"slot {self.name!r} cannot keep {self.keep} of {self.side}: need 1 to {self.side}")

    @property
    def side(self) -> int:
        """Things in a block."""
        return self.of // self.blocks

    @property
    def count(self) -> int:
        """How many values there are: a power of the binomial coefficient."""
        return int(math.comb(self.side, self.keep) ** self.blocks)

    @property
    def width(self) -> int:
        """Length of the encoding."""
        return self.of

    def holds(self, value: Any) -> bool:
        """Whether `value` is a legal value of this slot."""
        if not isinstance(value, tuple) or len(value) != self.keep * self.blocks:
            return False
        if not all(a < b for a, b in pairwise(value)):
            return False
        return all(i // self.side == place // self.keep for place, i in enumerate(value))

    def values(self) -> Iterator[tuple[int, ...]]:
        """All values in lexicographic order."""
        if self.blocks == 1:  # without holding all combinations in memory, as product would
            return combinations(range(self.of), self.keep)
        starts = range(0, self.of, self.side)
        parts = product(*(combinations(range(start, start + self.side), self.keep) for start in starts))
        return (tuple(chain.from_iterable(part)) for part in parts)

    def sample(self, rng: Rng) -> tuple[int, ...]:
        """A value, all equally likely."""
        return self.decode(rng.random(self.of))

    def neighbours(self, value: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """One kept thing exchanged for one of its block that is not."""
        kept = set(value)
        for old in value:
            start = old - old % self.side
            for new in range(start, start + self.side):
                if new not in kept:
                    yield tuple(sorted(kept - {old} | {new}))

    def encode(self, value: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """1 where kept, (of,) float32."""
        code = np.zeros(self.of, dtype=np.float32)
        code[list(value)] = 1
        return code

    def decode(self, code: np.ndarray[Any, Any]) -> tuple[int, ...]:
        """The `keep` largest entries of each block; the first of equal ones."""
        best = np.argsort(-code.reshape(self.blocks, self.side), axis=1, kind="stable")[:, : self.keep]
        return tuple((np.sort(best, axis=1) + np.arange(0, self.of, self.side)[:, None]).flatten().tolist())

    def label(self, value: tuple[int, ...]) -> list[int]:
        """What a person reads."""
        return list(value)

    def parse(self, text: Any) -> tuple[int, ...]:
        """The value of a label. Raises ShapeError where it is none."""
        value = tuple(text) if isinstance(text, (list, tuple)) else ()
        if not self.holds(value):
            raise ShapeError(
                f"{self.name} needs {self.keep * self.blocks} ascending indices below {self.of}, got {text!r:.80}"
            )
        return value


Slot = OneOf | Subset
