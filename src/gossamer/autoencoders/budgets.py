"""How many tokens of a batch each feature may take: equal shares, or shares after a Zipf law.

After Ayonrinde 2024 (arXiv 2411.02124); the publication's formulas are not public in code, so the form of the law, its
fit and the rounding are chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError


@dataclass(frozen=True)
class Zipf:
    """Density of the feature of rank r (0 is the densest), up to a factor: (r + 1 + beta) ** -alpha.

    >>> [round(share, 4) for share in Zipf(1.0, 0.0).shares(3).tolist()]
    [1.0, 0.5, 0.3333]
    """

    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.alpha) and np.isfinite(self.beta) and self.alpha >= 0 and self.beta > -1):
            raise ConfigError(f"a Zipf law needs alpha >= 0 and beta > -1, got {self.alpha} and {self.beta}")

    def shares(self, features: int) -> Tensor:
        """(features,) float64 in order of rank, the first 1; steep laws do not underflow before their end."""
        ranks = torch.arange(features, dtype=torch.float64)
        return (-self.alpha * (ranks / (1 + self.beta)).log1p()).exp()


def fit_zipf(density: Tensor, top: float = 0.8) -> Zipf:
    """The law whose logarithm is nearest, by least squares, to the log densities of the most used features.

    Args:
        density: (features,), in any order. top: share of ranks that count; the low end holds the dying features.
    Raises:
        ConfigError: fewer than three used features among them. NumericsError: negative or not finite.
    """
    from scipy.optimize import minimize_scalar

    if not bool(torch.isfinite(density).all()) or bool((density < 0).any()):
        raise NumericsError("densities must be finite and not negative; look for NaN activations")
    ordered = density.detach().double().cpu().sort(descending=True).values[: round(top * len(density))].numpy()
    logs, ranks = np.log(ordered[ordered > 0]), np.arange(1, int((ordered > 0).sum()) + 1)
    if len(logs) < 3:
        raise ConfigError(f"a Zipf law needs at least 3 used features, got {len(logs)} of {len(density)}; train longer")

    def line(log_shift: float) -> tuple[float, float]:
        """For a given beta + 1: slope alpha (at least 0), and what is left unexplained."""
        x = np.log(ranks - 1 + np.exp(log_shift))
        x, y = x - x.mean(), logs - logs.mean()
        alpha = max(0.0, -float(x @ y) / float(x @ x))
        return alpha, float(np.square(y + alpha * x).sum())

    best = minimize_scalar(lambda s: line(s)[1], bounds=(-3.0, float(np.log(4 * len(density)))), method="bounded")
    return Zipf(line(best.x)[0], float(np.exp(best.x)) - 1)


def share_budget(shares: Tensor, total: int, most: int) -> Tensor:
    """Whole budgets in proportion to `shares`, each from 1 to `most`, that add up to `total` exactly.

    Budgets are c * share, cut to the bounds, with the one c that gives the total; the largest remainders are rounded
    up, ties to the lower index.

    Args:
        shares: (features,), positive. total: tokens to give away. most: tokens of the batch.
    Returns:
        (features,) int64.
    Raises:
        ConfigError: less than one token, or more than all tokens, for each feature.

    >>> share_budget(torch.tensor([4.0, 2.0, 1.0]), 8, 8).tolist()
    [5, 2, 1]
    """
    features = len(shares)
    if total < features:
        raise ConfigError(
            f"budget M={total} gives less than one token per feature ({features}); raise the batch size to at least "
            f"{-(-most * features // max(total, 1))} tokens, or k"
        )
    if total > most * features:
        raise ConfigError(f"budget M={total} is more than {most} tokens for each of {features} features; lower k")
    wanted = shares.double().clamp_min(1e-30)
    low, high = 0.0, float(most / wanted.min())
    for _ in range(100):
        middle = (low + high) / 2
        if float((middle * wanted).clamp(1, most).sum()) < total:
            low = middle
        else:
            high = middle
    real = (high * wanted).clamp(1, most)
    whole = (real + 1e-9).floor().long().clamp_max(most)
    rest = torch.where(whole < most, real - whole, -torch.inf)
    missing = total - int(whole.sum())
    if missing > 0:
        whole[torch.argsort(rest, descending=True, stable=True)[:missing]] += 1
    elif missing < 0:
        spare = torch.where(whole > 1, whole - real, -torch.inf)
        whole[torch.argsort(spare, descending=True, stable=True)[:-missing]] -= 1
    return whole
