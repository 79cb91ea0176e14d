"""Which token-feature pairs stay: the sparsifying step of every kind of sparse autoencoder, as values.

A selection is a matching of tokens and features that maximises the sum of the kept activations under a budget
(Ayonrinde 2024): each token has one (token choice), each feature has one (feature choice), or only the whole batch has
one (mutual choice, the same as BatchTopK of Bussmann et al. 2024). Ties go to the lower index; activations that are
not positive are never kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.autoencoders.budgets import Zipf, share_budget
from gossamer.errors import ConfigError, ShapeError, unknown
from gossamer.kernels.topk import topk_cols, topk_mask, topk_rows


@dataclass(frozen=True)
class Selection:
    """Base of the kinds. `couples`: one token's code depends on the others of its batch."""

    name: ClassVar[str] = ""
    couples: ClassVar[bool] = False
    chooses: ClassVar[bool] = True  # by ranking; else the loss makes the code sparse

    def check(self, features: int) -> None:
        """Raise ConfigError where the budget does not fit the dictionary."""

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.name, **asdict(self)}


def _check_k(k: float, features: int, whole: bool) -> None:
    if not (math.isfinite(k) and 0 < k <= features) or (whole and k != int(k)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"k={k}: needs {kind} above 0 and at most the {features} features")


@dataclass(frozen=True)
class TokenChoice(Selection):
    """The k largest activations of each token (TopK; Gao et al. 2024)."""

    k: int = 32
    name: ClassVar[str] = "topk"

    def check(self, features: int) -> None:
        _check_k(self.k, features, True)

    def mask(self, z: Tensor, ranks: Tensor | None = None) -> Tensor:
        return topk_rows(z, int(self.k), name="activations") & (z > 0)


@dataclass(frozen=True)
class MutualChoice(Selection):
    """The floor(k B) largest activations of a batch of B tokens (BatchTopK); k may be fractional."""

    k: float = 32.0
    name: ClassVar[str] = "mutual"
    couples: ClassVar[bool] = True

    def check(self, features: int) -> None:
        _check_k(self.k, features, False)

    def mask(self, z: Tensor, ranks: Tensor | None = None) -> Tensor:
        return topk_mask(z, math.floor(self.k * len(z)), name="activations") & (z > 0)


@dataclass(frozen=True)
class FeatureChoice(Selection):
    """The m_i largest activations of each feature i, with the m_i adding up to floor(k B).

    Args:
        k: mean active features of a token.
        budgets: "uniform", or "zipf": the feature whose usage has rank r gets a share after the law alpha, beta. Where
            alpha is None, training fits the law to the densities at hand when it switches; until then alpha is 1.
    """

    k: float = 32.0
    budgets: str = "uniform"
    alpha: float | None = None
    beta: float = 0.0
    name: ClassVar[str] = "feature"
    couples: ClassVar[bool] = True

    def check(self, features: int) -> None:
        _check_k(self.k, features, False)
        if self.budgets not in ("uniform", "zipf"):
            raise unknown("kind of budgets", self.budgets, ("uniform", "zipf"))

    def tokens(self, batch: int, features: int, ranks: Tensor | None = None) -> Tensor:
        """(features,) int64: the budget of every feature for a batch.

        Args:
            ranks: (features,), the rank of each feature's usage; needed for "zipf".
        """
        by_rank = _by_rank(self, batch, features)
        if self.budgets == "uniform":
            return by_rank
        if ranks is None:
            raise ConfigError("Zipf budgets need the ranks of the features' usage")
        return by_rank.to(ranks.device)[ranks]

    def mask(self, z: Tensor, ranks: Tensor | None = None, budgets: Tensor | None = None) -> Tensor:
        """Args: z (B, features); budgets: one's own (features,) int64 in place of those that `tokens` gives."""
        if budgets is None:
            budgets = self.tokens(len(z), z.shape[1], ranks)
        else:
            self._check_budgets(budgets, z)
        return topk_cols(z, budgets.to(z.device), name="activations") & (z > 0)

    def _check_budgets(self, budgets: Tensor, z: Tensor) -> None:
        total = math.floor(self.k * len(z))
        if budgets.shape != z.shape[1:]:
            raise ShapeError(f"{z.shape[1]} features need as many budgets, got shape {tuple(budgets.shape)}")
        if int(budgets.sum()) != total:
            raise ConfigError(f"the budgets add up to {int(budgets.sum())}, not to M={total} (k={self.k}, B={len(z)})")


@lru_cache(maxsize=64)
def _by_rank(choice: FeatureChoice, batch: int, features: int) -> Tensor:
    """The budgets in order of rank."""
    total = math.floor(choice.k * batch)
    law = Zipf(1.0 if choice.alpha is None else choice.alpha, choice.beta)
    shares = torch.ones(features) if choice.budgets == "uniform" else law.shares(features)
    return share_budget(shares, total, batch)


@dataclass(frozen=True)
class ReLU(Selection):
    """Every positive activation; an L1 or L_p penalty makes them few.

    Args:
        k: mean active features to reach; the penalty's strength follows it. None keeps `strength` as given.
        strength: of the penalty, at first. power: p of L_p; `final_power` is reached linearly at the end (p-annealing).
    """

    k: float | None = 32.0
    strength: float = 0.1
    power: float = 1.0
    final_power: float = 1.0
    name: ClassVar[str] = "relu"
    chooses: ClassVar[bool] = False

    def check(self, features: int) -> None:
        _check_penalty(self.k, self.strength, features)
        if not 0 < self.final_power <= self.power <= 2:
            raise ConfigError(f"L_p needs 0 < final_power <= power <= 2, got {self.final_power} and {self.power}")


@dataclass(frozen=True)
class Gated(Selection):
    """A gate decides what is active, a second path how much (Rajamanoharan et al. 2024a); L1 on the gate."""

    k: float | None = 32.0
    strength: float = 0.1
    name: ClassVar[str] = "gated"
    chooses: ClassVar[bool] = False

    def check(self, features: int) -> None:
        _check_penalty(self.k, self.strength, features)


@dataclass(frozen=True)
class JumpReLU(Selection):
    """What exceeds a learned threshold of its feature (Rajamanoharan et al. 2024b).

    Args:
        k: the penalty is strength (L0 / k - 1)^2 times the mean squared norm of the activations, so that a strength
            means the same at any scale; None: strength * L0.
        threshold: at first; None: where the first batch has 2 k active features (or 0.01 without k). Thresholds learn
            three times as fast as weights, or short trainings end before they reach the budget.
        bandwidth: of the rectangle in the step's pseudo-derivative, for activations whose mean squared norm is their
            width. SAELens takes 0.05, dictionary_learning 0.001 at unit norm; so narrow a rectangle leaves most
            thresholds without a gradient in trainings of some thousand batches.
    """

    k: float | None = 32.0
    strength: float = 1.0
    threshold: float | None = None
    bandwidth: float = 1.0
    name: ClassVar[str] = "jumprelu"
    chooses: ClassVar[bool] = False

    def check(self, features: int) -> None:
        _check_penalty(self.k, self.strength, features)
        if self.bandwidth <= 0 or (self.threshold is not None and self.threshold <= 0):
            raise ConfigError(f"threshold={self.threshold}, bandwidth={self.bandwidth}: both must be above 0")


def _check_penalty(k: float | None, strength: float, features: int) -> None:
    if k is not None:
        _check_k(k, features, False)
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(f"strength={strength}: the penalty must be finite and not negative")


KINDS: dict[str, type[Selection]] = {
    kind.name: kind for kind in (TokenChoice, MutualChoice, FeatureChoice, ReLU, Gated, JumpReLU)
}
ALIASES = {"batchtopk": "mutual", "token": "topk", "standard": "relu"}


def make(kind: str, **options: Any) -> Selection:
    """A selection by its name. Raises ConfigError for an unknown name or option, with the nearest known ones."""
    name = ALIASES.get(kind, kind)
    if name not in KINDS:
        raise unknown("kind of sparse autoencoder", kind, [*KINDS, *ALIASES])
    known = KINDS[name].__dataclass_fields__
    for option in options:
        if option not in known:
            raise unknown(f"option of {kind!r}", option, known)
    return KINDS[name](**options)


def from_dict(record: Mapping[str, Any]) -> Selection:
    """What `Selection.as_dict` gave."""
    return make(**dict(record))
