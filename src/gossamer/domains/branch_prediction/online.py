"""Learning sparse models while the program runs: stochastic gradient descent with a cumulative L1 penalty."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from .features import Window, matrix, occurrences, signs
from .fit import FIRST, LARGEST, SMALLEST
from .trace import Trace

Floats = NDArray[np.float64]


@dataclass
class CumulativeL1:
    """Logistic regression by stochastic gradient steps; each weight pays the penalty that it has not yet paid.

    Args:
        features: number of inputs. penalty: lambda. rate: eta0; the rate after t samples is eta0 / (1 + t / horizon).
    Source: Tsuruoka, Tsujii and Ananiadou 2009, figure 2; the rate's form is ours.
    Raises:
        ConfigError: a value that is not positive.
    """

    features: int
    penalty: float = FIRST
    rate: float = 0.1
    horizon: float = 2000.0
    weights: Floats = field(init=False)
    bias: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if min(self.features, self.penalty, self.rate, self.horizon) <= 0:
            raise ConfigError(
                f"features, penalty, rate and horizon must be positive, got {self.features}, {self.penalty}, "
                f"{self.rate}, {self.horizon}"
            )
        self.weights = np.zeros(self.features)
        self._paid = np.zeros(self.features)  # q: what was really applied, signed
        self._due, self._seen = 0.0, 0  # u: what every weight could have paid

    def score(self, x: Floats) -> float:
        """x . weights + bias; the prediction is its sign."""
        return float(x @ self.weights + self.bias)

    def learn(self, x: Floats, y: float) -> None:
        """One step on the inputs (features,) and the outcome +1 or -1."""
        eta = self.rate / (1 + self._seen / self.horizon)
        step = eta * y / (1 + np.exp(y * self.score(x)))
        self.weights += step * x
        self.bias += step
        self._due += eta * self.penalty
        self._seen += 1
        before, w = self.weights, self.weights
        above = np.maximum(0.0, w - (self._due + self._paid))
        below = np.minimum(0.0, w + (self._due - self._paid))
        self.weights = np.where(w > 0, above, np.where(w < 0, below, 0.0))
        self._paid += self.weights - before

    def adapt(self, max_nonzero: int) -> None:
        """Double the penalty while there are too many weights, else halve it; within [1e-5, 0.1].

        Source: the paper's online training (start 0.01, at most 50 weights).
        """
        many = np.count_nonzero(self.weights) > max_nonzero
        self.penalty = min(2 * self.penalty, LARGEST) if many else max(self.penalty / 2, SMALLEST)


@dataclass(frozen=True)
class OnlineRun:
    """One branch learnt online: whether each execution was predicted, and the final model."""

    right: NDArray[np.bool_]
    model: CumulativeL1
    most_nonzero: int


def learn_online(
    trace: Trace, pc: int, window: Window | None = None, max_nonzero: int = 50, every: int = 500, penalty: float = FIRST
) -> OnlineRun:
    """Predict and then learn every execution of one branch, in order.

    Args:
        every: executions between two changes of the penalty. The first one comes after `every`.
    Raises:
        ConfigError: max_nonzero or every < 1, or a branch that the trace does not hold.
    """
    window = window or Window()
    at = occurrences(trace, pc)
    if not len(at):
        raise ConfigError(f"branch {pc:#x} is not executed in trace {trace.name!r}")
    if max_nonzero < 1 or every < 1:
        raise ConfigError(f"max_nonzero and every must be at least 1, got {max_nonzero} and {every}")
    model, outcome = CumulativeL1(window.size, penalty), signs(trace)[at]
    right, most = np.zeros(len(at), bool), 0
    for first in range(0, len(at), every):
        block = slice(first, min(first + every, len(at)))
        for x, i in zip(matrix(trace, at, block, window).astype(np.float64), range(len(at))[block], strict=True):
            right[i] = (model.score(x) >= 0) == (outcome[i] > 0)
            model.learn(x, float(outcome[i]))
        most = max(most, int(np.count_nonzero(model.weights))) if first else most
        model.adapt(max_nonzero)
    return OnlineRun(right, model, most)
