"""Running predictors over traces, and counting what they get wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .trace import Bits, Trace


class Plays(Protocol):
    """A `Predictor` or a `Hybrid`."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int: ...

    def play(self, trace: Trace, quiet: Bits | None = None) -> Bits: ...


@dataclass(frozen=True, eq=False)
class Result:
    """What a predictor did on a trace.

    Args:
        guess: (n,) uint8, its predictions. start: branches before this one are learned from but not counted.
    """

    predictor: str
    bits: int
    trace: Trace
    guess: Bits
    start: int = 0

    @property
    def branches(self) -> int:
        """Branches that count."""
        return len(self.trace) - self.start

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(n - start,) which of them were predicted wrongly."""
        return self.guess[self.start :] != self.trace.taken[self.start :]

    @property
    def misses(self) -> int:
        """Wrong predictions."""
        return int(self.wrong.sum())

    @property
    def miss_rate(self) -> float:
        """Misses per branch."""
        return self.misses / self.branches

    @property
    def misses_per_kilo(self) -> float:
        """Misses per 1000 branches; not MPKI, which counts instructions."""
        return 1000 * self.miss_rate

    @property
    def mpki(self) -> float | None:
        """Misses per 1000 instructions; None where the trace does not know them.

        Instructions of a part of the trace are taken in proportion to its branches.
        """
        if self.trace.instructions is None:
            return None
        return 1000 * self.misses / (self.trace.instructions * self.branches / len(self.trace))

    def by_branch(self) -> list[BranchRow]:
        """One row per static branch, most misses first; ties go to the lower address."""
        pcs, which = np.unique(self.trace.pc[self.start :], return_inverse=True)
        executed = np.bincount(which, minlength=len(pcs))
        missed = np.bincount(which[self.wrong], minlength=len(pcs))
        taken = np.bincount(which, self.trace.taken[self.start :], minlength=len(pcs))
        order = np.lexsort((pcs, -missed))
        return [BranchRow(int(pcs[i]), int(executed[i]), int(taken[i]), int(missed[i])) for i in order]


@dataclass(frozen=True)
class BranchRow:
    """How often one static branch was executed, taken and mispredicted."""

    pc: int
    executed: int
    taken: int
    misses: int

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return 1 - self.misses / self.executed


def simulate(trace: Trace, predictor: Plays, split: float | None = None) -> Result:
    """Run a predictor over a whole trace.

    Args:
        split: count only what follows this share of the trace; the predictor learns from all of it. None: count all.
    Raises:
        ConfigError: split outside (0, 1).
    """
    start = 0 if split is None else trace.cut(split)
    return Result(predictor.name, predictor.bits, trace, predictor.play(trace), start)
