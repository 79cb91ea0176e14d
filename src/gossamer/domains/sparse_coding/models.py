"""The six models as estimators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError, unknown
from .checks import check_states
from .discrete import DiscreteLinear
from .estimator import SparseCoder
from .maximum import MaximalCauses as MaximalCausesModel
from .model import Model, Params
from .spike_slab import SpikeSlab
from .states import StateSpace

NOISES = ("scalar", "diagonal", "full")


class _Discrete(SparseCoder):
    @staticmethod
    def _prior(params: Params) -> Any:
        return float(1 - params["prior"][0])


class BinarySparseCoding(_Discrete):
    """y = W s + noise, s_h in {0, 1}: components are present or not (BSC).

    Arguments, attributes and errors are those of `SparseCoder`. `prior_` is the probability of a component.

    >>> import numpy as np
    >>> Y = np.random.default_rng(0).normal(size=(50, 4))
    >>> BinarySparseCoding(2, steps=5, random_state=0).fit(Y).transform(Y).shape
    (50, 2)
    """

    def _make(self, space: StateSpace, learn: frozenset[str]) -> Model:
        return DiscreteLinear(space, learn=learn)


class TernarySparseCoding(_Discrete):
    """y = W s + noise, s_h in {-1, 0, 1}, both signs equally probable (TSC).

    Arguments, attributes and errors are those of `SparseCoder`.
    """

    _candidates, _active = 7, 4

    def _values(self) -> tuple[float, ...]:
        return (-1.0, 1.0)

    def _make(self, space: StateSpace, learn: frozenset[str]) -> Model:
        return DiscreteLinear(space, tied=True, learn=learn)


@dataclass(kw_only=True, eq=False, repr=False)
class DiscreteSparseCoding(_Discrete):
    """y = W s + noise, s_h in any finite set of values with 0, whose probabilities are learned (DSC).

    Arguments, attributes and errors are those of `SparseCoder`, and:

    Args:
        states: the values. penalty: least probability of 0, in [0, 1).
    Attributes:
        probabilities_: (states,) of each value, in the order of `states`.
    """

    _candidates, _active = 7, 4

    states: Sequence[float] = (-1.0, 0.0, 1.0)
    penalty: float = 0.0

    def _values(self) -> tuple[float, ...]:
        return check_states(self.states)

    def _make(self, space: StateSpace, learn: frozenset[str]) -> Model:
        if not 0 <= self.penalty < 1:
            raise ConfigError(f"penalty is the least probability of 0 and must lie in [0, 1), got {self.penalty}")
        return DiscreteLinear(space, penalty=self.penalty, learn=learn)

    def _keep(self, best: Any) -> None:
        super()._keep(best)
        learned = best.params["prior"].double().cpu().numpy()
        others = iter(learned[1:])
        self.probabilities_ = np.array([learned[0] if value == 0 else next(others) for value in self.states])


class MaximalCauses(SparseCoder):
    """y_d = max_h s_h W_dh + noise, s_h in {0, 1}, W > 0: the strongest component hides the others (MCA).

    Arguments, attributes and errors are those of `SparseCoder`. EM has poor optima here: take several `restarts`.
    """

    _candidates, _active = 5, 3
    _hottest = 4.0
    _positive = True

    def _make(self, space: StateSpace, learn: frozenset[str]) -> Model:
        return MaximalCausesModel(space, magnitude=not self._positive, learn=learn)


class MaxMagnitudeCauses(MaximalCauses):
    """y_d = the s_h W_dh of largest magnitude + noise, s_h in {0, 1}, W of either sign (MMCA).

    Arguments, attributes and errors are those of `SparseCoder`.
    """

    _positive = False


@dataclass(kw_only=True, eq=False, repr=False)
class SpikeSlabSparseCoding(SparseCoder):
    """y = W (s * z) + noise, s_h ~ Bernoulli(pi_h), z_h ~ N(mu_h, psi_h): present or not, and how strongly (GSC).

    Arguments, attributes and errors are those of `SparseCoder`, and:

    Args:
        noise: "scalar", "diagonal" (one deviation per column of the data; `sigma_` is a vector), or "full" (`sigma_` is
            the covariance).
    """

    _candidates, _active = 6, 4
    _hottest = 4.0

    noise: str = "scalar"

    def _make(self, space: StateSpace, learn: frozenset[str]) -> Model:
        if self.noise not in NOISES:
            raise unknown("noise", self.noise, NOISES)
        if self.noise == "full" and self.missing:
            raise ConfigError("missing values need noise 'scalar' or 'diagonal', got 'full'")
        return SpikeSlab(space, noise=self.noise, learn=learn)  # type: ignore[arg-type]
