"""A trace: the conditional branches that a program executed, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, DataError

Bits = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Trace:
    """Executed conditional branches, oldest first.

    Args:
        pc: (n,) uint64, address of each branch. taken: (n,) uint8, 1 where it was taken.
        instructions: executed instructions, of all kinds; None where the source does not say.
        name: for tables.
    Raises:
        DataError: no branches, arrays of different lengths, an outcome other than 0 or 1, fewer instructions than
            branches.
    """

    pc: NDArray[np.uint64]
    taken: Bits
    instructions: int | None = None
    name: str = "trace"

    def __post_init__(self) -> None:
        pc, taken = np.asarray(self.pc), np.asarray(self.taken)
        if pc.ndim != 1 or pc.shape != taken.shape:
            raise DataError(f"trace {self.name!r}: pc and taken must be equally long, got {pc.shape}, {taken.shape}")
        if not pc.size:
            raise DataError(f"trace {self.name!r} holds no conditional branch")
        if not ((taken == 0) | (taken == 1)).all():
            at = int(np.flatnonzero((taken != 0) & (taken != 1))[0])
            raise DataError(f"trace {self.name!r}: outcome {taken[at]} of branch {at} is neither 0 nor 1")
        if self.instructions is not None and self.instructions < pc.size:
            raise DataError(f"trace {self.name!r}: {self.instructions} instructions for {pc.size} branches")
        object.__setattr__(self, "pc", np.ascontiguousarray(pc, np.uint64))
        object.__setattr__(self, "taken", np.ascontiguousarray(taken, np.uint8))

    def __len__(self) -> int:
        return int(self.pc.size)

    def cut(self, split: float) -> int:
        """The number of branches in the first part of a split. Raises ConfigError unless 0 < split < 1."""
        if not 0 < split < 1:
            raise ConfigError(f"split must lie strictly between 0 and 1, got {split}")
        return min(max(1, round(split * len(self))), len(self) - 1)

    def first(self, count: int) -> Trace:
        """The first `count` branches; instructions in proportion. Raises ConfigError for count < 1."""
        if count < 1:
            raise ConfigError(f"needs at least one branch, got {count}")
        count = min(count, len(self))
        share = None if self.instructions is None else round(self.instructions * count / len(self))
        return Trace(self.pc[:count], self.taken[:count], share, self.name)

    def static_branches(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The different addresses in rising order, and how often each was executed."""
        pcs, counts = np.unique(self.pc, return_counts=True)
        return pcs, counts
