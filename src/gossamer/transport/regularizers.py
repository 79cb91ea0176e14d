"""What is added to the cost of a plan: the one choice that decides how many entries it has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gossamer.errors import ConfigError


@dataclass(frozen=True)
class KSparse:
    """gamma / 2 ||t||^2 for each column t of the plan, and at most k non-zeros in it.

    k = 1 is unregularised transport (plus a constant), k = number of rows is `Quadratic`; between them smaller k means
    a sparser plan, a less smooth problem and a larger error in the row sums.

    Args:
        k: most non-zeros of a column, at least 1.
        gamma: weight of the squared norm, > 0, in units of cost / mass.
    Source: Liu, Puigcerver and Blondel 2023.
    Raises:
        ConfigError: k is no positive integer, or gamma is not positive.
    """

    k: int
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError(
                f"k counts the non-zeros of a column: it must be an integer of at least 1, got {self.k!r}"
            )
        _positive("gamma", self.gamma, "; for gamma = 0 use Unregularised()")


@dataclass(frozen=True)
class Quadratic:
    """gamma / 2 ||T||^2: sparse plans without control over the number of non-zeros (Blondel, Seguy and Rolet 2018).

    Raises:
        ConfigError: gamma is not positive.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma, "; for gamma = 0 use Unregularised()")


@dataclass(frozen=True)
class Entropic:
    """epsilon sum T (log T - 1): dense plans by Sinkhorn's iterations in the log domain (Cuturi 2013).

    Raises:
        ConfigError: epsilon is not positive.
    """

    epsilon: float = 0.01

    def __post_init__(self) -> None:
        _positive("epsilon", self.epsilon, "; for epsilon = 0 use Unregularised()")


@dataclass(frozen=True)
class Unregularised:
    """The cheapest plan, a vertex of the polytope, by POT's network simplex (extra `transport`)."""


Regularizer = KSparse | Quadratic | Entropic | Unregularised


def _positive(name: str, value: float, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a positive finite number, got {value!r}{remedy}")
