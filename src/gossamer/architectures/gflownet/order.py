"""Losses that know only the order of scores: pairwise for one objective, listwise by dominance for several."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, NumericsError, ShapeError


def pairwise(log_reward: Tensor, score: Tensor, partner: Tensor) -> Tensor:
    """Cross entropy of sigmoid(log R_i - log R_j) with 1 where u_i > u_j, 1/2 where equal, 0 where less.

    Args:
        log_reward: (n,). score: (n,), larger is better. partner: (n,) indices j.
    Source: Chen & Mauch 2024, equation 5.
    """
    gap = log_reward - log_reward[partner]
    ahead, behind = score > score[partner], score < score[partner]
    target = torch.where(ahead, 1.0, torch.where(behind, 0.0, 0.5)).to(gap.dtype)
    return F.binary_cross_entropy_with_logits(gap, target)


def listwise(log_reward: Tensor, best: Tensor) -> Tensor:
    """Cross entropy of softmax(log R) over the batch with the uniform distribution on `best` (n,) bool.

    Source: Chen & Mauch 2024, equation 7.
    """
    target = best.to(log_reward.dtype)
    return -(target / target.sum() * log_reward.log_softmax(0)).sum()


def non_dominated(scores: Tensor) -> Tensor:
    """(n,) bool of rows of (n, k), larger is better in all, that no other row dominates; equal rows all stay."""
    no_worse = (scores[:, None] >= scores[None]).all(2)
    better = (scores[:, None] > scores[None]).any(2)
    return ~(no_worse & better).any(0)


def layers(scores: Tensor) -> Tensor:
    """(n,) the front of each row: 0 for the non-dominated, 1 for those that only these dominate, ..."""
    rank = torch.full((len(scores),), -1)
    depth = 0
    while bool((rank < 0).any()):
        left = (rank < 0).nonzero().flatten()
        rank[left[non_dominated(scores[left])]] = depth
        depth += 1
    return rank


@dataclass(frozen=True)
class OrderLoss:
    """How a batch of scores becomes a loss.

    Args:
        order: "batch" compares within the batch (the paper); "global" ranks by fronts among all objects seen, so that
            no object is on the front of one batch and off that of the next (a follow-up of 2025).
        max_gap: log rewards are clamped to this distance from the batch's mean: the loss has no minimum at finite
            gaps, and entropy collapses where it runs on.
    """

    order: str = "batch"
    max_gap: float | None = None

    def __post_init__(self) -> None:
        if self.order not in ("batch", "global"):
            raise ConfigError(f"order is 'batch' or 'global', got {self.order!r}")
        if self.max_gap is not None and self.max_gap <= 0:
            raise ConfigError(f"max_gap must be positive, got {self.max_gap}")

    def __call__(self, log_reward: Tensor, scores: Tensor, seen: Tensor, rng: torch.Generator) -> Tensor:
        """The loss of a batch.

        Args:
            log_reward: (n,) implied. scores: (n, k). seen: (m, k) scores of other objects, for "global".
            rng: of the partners.
        Raises:
            ConfigError: fewer than two objects.
        """
        if len(scores) < 2:
            raise ConfigError(f"an order needs a batch of at least 2 objects, got {len(scores)}")
        if self.max_gap is not None:
            centre = log_reward.mean().detach()
            log_reward = centre + (log_reward - centre).clamp(-self.max_gap, self.max_gap)
        if scores.shape[1] == 1:
            partner = torch.randperm(len(scores), generator=rng)
            return pairwise(log_reward, scores[:, 0], partner)
        if self.order == "batch":
            return listwise(log_reward, non_dominated(scores))
        known, place = torch.cat([scores, seen]).unique(dim=0, return_inverse=True)
        mine = layers(known)[place[: len(scores)]]
        return listwise(log_reward, mine == mine.min())


def check_scores(scores: Tensor, states: Tensor, objectives: int | None) -> Tensor:
    """(n, k) float64 scores.

    Raises:
        NumericsError: NaN or infinite; the object is named. ShapeError: another number of objectives than before.
    """
    scores = scores.double()
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.ndim != 2 or len(scores) != len(states):
        raise ShapeError(f"the objective gave shape {tuple(scores.shape)} for {len(states)} objects")
    if objectives is not None and scores.shape[1] != objectives:
        raise ShapeError(f"the objective gave {scores.shape[1]} numbers after {objectives}")
    bad = (~torch.isfinite(scores)).any(1).nonzero().flatten()
    if len(bad):
        raise NumericsError(f"the objective of {states[bad[0]].tolist()} is {scores[bad[0]].tolist()}")
    return scores


def warn_without_signal(scores: Tensor) -> None:
    """Warn where all scores are equal."""
    if bool((scores == scores[:1]).all()):
        warnings.warn("all scores of the first batch are equal: their order says nothing", RuntimeWarning, stacklevel=3)
