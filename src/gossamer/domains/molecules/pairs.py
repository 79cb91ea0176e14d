"""The sparse pair gate: which pairs of atoms a layer computes (SPHNet, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.errors import unknown

from .paths import check_sparsity

THRESHOLDS = ("running", "batch")


class PairGate(nn.Module):
    """Keeps the pairs whose logit reaches a quantile of the logits, and scales their features by sigmoid(g - t).

    Args:
        features: of a pair's scalars.
        sparsity: share of pairs left out, in [0, 1).
        threshold: "batch" takes the quantile of the pairs at hand, as the authors' code does, also in use, so that a
            pair's fate depends on the other molecules; "running" does so in training and takes the running mean
            afterwards.
    """

    level: Tensor

    def __init__(self, features: int, sparsity: float = 0.7, threshold: str = "running") -> None:
        super().__init__()
        if threshold not in THRESHOLDS:
            raise unknown("threshold", threshold, THRESHOLDS)
        self.sparsity, self.threshold = check_sparsity(sparsity), threshold
        self.logit = nn.Linear(features, 1)
        self.register_buffer("level", torch.tensor(float("nan")))

    def forward(self, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """scalars (pairs, features) -> (kept pairs,) indices and (kept pairs, features) scaled scalars."""
        logits = self.logit(scalars).squeeze(1)
        if self.sparsity == 0 or not len(logits):
            keep = torch.ones_like(logits, dtype=torch.bool)
            level = logits.detach().min() if len(logits) else self.level
        else:
            level = self._level(logits.detach())
            keep = logits >= level
        kept = keep.nonzero().squeeze(1)
        return kept, scalars[kept] * torch.sigmoid(logits[kept] - level)[:, None]

    def _level(self, logits: Tensor) -> Tensor:
        if self.threshold == "running" and not self.training and not bool(self.level.isnan()):
            return self.level
        # "lower": an element of the logits, so that equal logits are all kept
        found = torch.quantile(logits, self.sparsity, interpolation="lower")
        if self.training:
            self.level.copy_(found if bool(self.level.isnan()) else 0.9 * self.level + 0.1 * found)
        return found
