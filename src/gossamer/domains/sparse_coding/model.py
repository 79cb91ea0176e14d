"""What the EM driver and the estimators ask of a generative model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .anneal import Settings
from .states import StateSpace

Params = dict[str, Tensor]
Stats = dict[str, Tensor]
FLOOR = 1e-5  # least probability of a unit's being active or silent


@dataclass(frozen=True)
class Batch:
    """Data points y (n, D), zero where missing, and which values are there (n, D), or None for all."""

    y: Tensor
    mask: Tensor | None = None

    def observed(self) -> Tensor:
        """Number of values of each point, (n,)."""
        if self.mask is None:
            return self.y.new_full((len(self.y),), float(self.y.shape[1]))
        return self.mask.sum(1).to(self.y)


@dataclass(frozen=True)
class Moments:
    """Mean, variance (both (D,)) and number of all data points, of all processes."""

    mean: Tensor
    variance: Tensor
    count: int

    @property
    def sd(self) -> float:
        """Mean over dimensions of the standard deviation."""
        return float(self.variance.sqrt().mean())


@dataclass(frozen=True)
class Inference:
    """The truncated posterior of a batch.

    Attributes:
        candidates: (n, H'). q: (n, states) probabilities, in the order of `StateSpace`.
        evidence: (n,) log of the sum of p(y, s) over considered states, a lower bound of log p(y).
        tempered: (n,) the same sum at the temperature of the step.
        extra: what else a model keeps for its statistics.
    """

    candidates: Tensor
    q: Tensor
    evidence: Tensor
    tempered: Tensor
    extra: Any = None


class Model(ABC):
    """A sparse coding model with given numbers of units, candidates and active units.

    Attributes:
        space: the states. learn: which of "W", "prior", "sigma" EM updates. missing: whether values may be missing.
    """

    space: StateSpace
    learn: frozenset[str]
    missing = False
    priors: tuple[str, ...] = ("prior",)  # parameters that the name "prior" stands for

    @abstractmethod
    def initial(self, data: Moments, generator: torch.Generator) -> Params:
        """Random parameters around the data's mean."""

    @abstractmethod
    def infer(self, params: Params, batch: Batch, settings: Settings) -> Inference:
        """E-step."""

    @abstractmethod
    def statistics(self, params: Params, batch: Batch, found: Inference, weights: Tensor) -> Stats:
        """Sums over the batch of all that the M-step needs; `weights` (n,) is 0 for points that are left out."""

    @abstractmethod
    def update(self, params: Params, stats: Stats, settings: Settings) -> Params:
        """M-step."""

    @abstractmethod
    def kept(self, params: Params) -> float:
        """Prior probability of at most `max_active` active units."""

    @abstractmethod
    def codes(self, found: Inference) -> Tensor:
        """Posterior mean of the latents, (n, H)."""

    @abstractmethod
    def reconstruct(self, params: Params, found: Inference) -> Tensor:
        """Posterior mean of the noise-free data, (n, D)."""

    @abstractmethod
    def decode(self, found: Inference, index: Tensor) -> Tensor:
        """Values of the latents in the states of these numbers: (n, k) -> (n, k, H)."""

    @abstractmethod
    def sample(self, params: Params, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Data (n, D) and latents (n, H) drawn from the model, without truncation."""

    @abstractmethod
    def width(self, dimensions: int) -> int:
        """Numbers that inference of one point of so many dimensions holds at once, to choose the size of batches."""

    def activity(self, found: Inference) -> Tensor:
        """Posterior probability that a unit is active, (n, H)."""
        return self.space.activity(found.candidates, found.q)

    def perturb(self, params: Params, settings: Settings, generator: torch.Generator) -> Params:
        """Parameters that are learned, with the step's noise on them, inside their bounds."""
        noise = {"W": settings.W_noise, "sigma": settings.sigma_noise, "prior": settings.pi_noise}
        new = dict(params)
        for part in ("W", "sigma", "prior"):
            if noise[part] > 0 and part in self.learn:
                for name in self.priors if part == "prior" else (part,):
                    value = params[name] + noise[part] * normal(params[name].shape, generator, params[name])
                    new[name] = self.bounded(name, value, params[name])
        return new

    def bounded(self, name: str, value: Tensor, before: Tensor) -> Tensor:
        """The nearest legal value of a parameter to which noise was added."""
        if name == "sigma":
            return value.clamp(min=1e-6) if value.ndim < 2 else before
        if name in ("prior", "pi"):
            return value.clamp(FLOOR, 1 - FLOOR)
        return value


def normal(shape: Any, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers that depend on the generator only, not on type or device of `like`."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like)


def initial_dictionary(data: Moments, units: int, generator: torch.Generator) -> Tensor:
    """Columns that are the data's mean with Gaussian noise of a quarter of its deviation, (D, H)."""
    noise = normal((len(data.mean), units), generator, data.mean)
    return data.mean[:, None] + data.sd / 4 * noise


def candidates_of(scores: Tensor, count: int) -> Tensor:
    """Units of the largest scores (n, H), in rising order: (n, count) int64."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def posterior(log_joint: Tensor, base: Tensor, beta: float, tempered: Tensor | None = None) -> tuple[Tensor, ...]:
    """(q, evidence, tempered evidence) of log joint densities (n, states) whose common part is `base` (n,).

    Args:
        tempered: the annealed log joint; by default beta times the log joint.
    """
    evidence = torch.logsumexp(log_joint, 1)
    if beta == 1.0 and tempered is None:
        return (log_joint - evidence[:, None]).exp(), evidence + base, evidence + base
    tempered = beta * log_joint if tempered is None else tempered
    total = torch.logsumexp(tempered, 1)
    return (tempered - total[:, None]).exp(), evidence + base, total + beta * base
