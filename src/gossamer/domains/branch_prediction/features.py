"""The long history before each execution of one branch, as a matrix of +1 and -1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from .trace import Trace

LONGEST_LOCAL = 64  # what an entry of the side table can hold


@dataclass(frozen=True)
class Window:
    """How much history a model sees: `history` last branches of any kind, then `local` last ones of its own address.

    Feature k < history is the branch k + 1 ago; feature history + k is the own outcome k + 1 ago. The paper takes
    512 and 512; 32 local ones are what an entry can afford.

    Raises:
        ConfigError: no history at all, or one out of range.
    """

    history: int = 512
    local: int = 32

    def __post_init__(self) -> None:
        if not (0 <= self.history <= 4096 and 0 <= self.local <= LONGEST_LOCAL and self.history + self.local):
            raise ConfigError(
                f"needs 0 <= history <= 4096 and 0 <= local <= {LONGEST_LOCAL}, not both 0; got {self.history} and "
                f"{self.local}"
            )

    @property
    def size(self) -> int:
        """Number of features."""
        return self.history + self.local

    def check(self, trace: Trace) -> None:
        """Raise ConfigError for a history that is longer than the trace."""
        if self.history >= len(trace):
            raise ConfigError(f"history={self.history} is longer than the trace of {len(trace)} branches")

    def describe(self, feature: int) -> str:
        """A feature in words.

        >>> Window(512, 32).describe(60), Window(512, 32).describe(512)
        ('61 branches ago', 'own outcome 1 ago')
        """
        if feature < self.history:
            return f"{feature + 1} branches ago"
        return f"own outcome {feature - self.history + 1} ago"


def signs(trace: Trace) -> NDArray[np.int8]:
    """(n,) outcomes as +1 (taken) and -1."""
    return (2 * trace.taken.astype(np.int8) - 1).astype(np.int8)


def occurrences(trace: Trace, pc: int) -> NDArray[np.int64]:
    """Where in the trace one branch stands."""
    return np.flatnonzero(trace.pc == np.uint64(pc))


def matrix(trace: Trace, at: NDArray[np.int64], which: slice, window: Window) -> NDArray[np.int8]:
    """The features of some executions of one branch.

    Args:
        at: all its places in the trace, rising. which: the executions wanted, as a slice of `at`.
    Returns:
        (executions, window.size) int8 of +1, -1, and 0 for what lies before the first branch.
    """
    outcome = signs(trace)
    chosen = np.arange(len(at))[which]
    parts = [_behind(outcome, at[chosen], window.history), _behind(outcome[at], chosen, window.local)]
    return np.concatenate(parts, axis=1)


def columns(trace: Trace, at: NDArray[np.int64], features: tuple[int, ...], window: Window) -> NDArray[np.int8]:
    """(len(at), len(features)): some columns of `matrix` for all executions, without building the rest."""
    outcome = signs(trace)
    order = np.arange(len(at))
    parts = [
        _shift(outcome, at, feature)
        if feature < window.history
        else _shift(outcome[at], order, feature - window.history)
        for feature in features
    ]
    return np.stack(parts, axis=1) if parts else np.zeros((len(at), 0), np.int8)


def _shift(outcome: NDArray[np.int8], places: NDArray[np.int64], ago: int) -> NDArray[np.int8]:
    source = places - 1 - ago
    return np.where(source >= 0, outcome[np.maximum(source, 0)], np.int8(0))


def _behind(outcome: NDArray[np.int8], places: NDArray[np.int64], length: int) -> NDArray[np.int8]:
    """(len(places), length): the outcomes before each place, newest first."""
    if not length:
        return np.zeros((len(places), 0), np.int8)
    padded = np.concatenate([np.zeros(length, np.int8), outcome])
    windows = np.lib.stride_tricks.sliding_window_view(padded, length)
    return np.ascontiguousarray(windows[places][:, ::-1])
