"""How far confidence may be believed: calibration error, likelihood, Brier score, temperature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, unknown
from gossamer.metrics.classification import check


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats. logits: (n, classes); log-probabilities serve too."""
    check(logits, labels)
    return float(F.cross_entropy(logits.double(), labels.long()))


def brier(logits: Tensor, labels: Tensor) -> float:
    """Mean squared distance between the probability vector and the one-hot label, in 0..2 (Brier 1950)."""
    check(logits, labels)
    p = logits.double().softmax(1)
    return float((p - F.one_hot(labels.long(), p.shape[1])).square().sum(1).mean())


def ece(logits: Tensor, labels: Tensor, bins: int = 15, spacing: Literal["width", "mass"] = "width") -> float:
    """Expected calibration error of the top class: sum over bins of share * |accuracy - confidence|.

    Args:
        logits: (n, classes); log-probabilities serve too. labels: (n,) integers.
        bins: 15 as in Guo et al. 2017.
        spacing: "width" cuts confidence at k / bins (bins are (low, high]); "mass" puts the same number of
            samples in every bin (sizes differ by at most one), which removes the empty bins.
    Source: Guo et al. 2017, equation 3; Nguyen and O'Connor 2015 for equal mass.
    """
    check(logits, labels)
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, got {bins}")
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    if spacing == "width":
        where = (confidence * bins).ceil().long().clamp(1, bins) - 1
    elif spacing == "mass":
        rank = torch.empty(len(gap), dtype=torch.long)
        rank[confidence.cpu().argsort(stable=True)] = torch.arange(len(gap))
        where = (rank * bins // len(gap)).to(gap.device)
    else:
        raise unknown("spacing", spacing, ("width", "mass"))
    total = torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add(0, where, gap)
    return float(total.abs().sum() / len(gap))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 that minimises the likelihood loss of `logits / T` on held-out samples.

    The loss is convex in 1/T, so bisection on its slope finds the optimum. Accuracy is unchanged. T is kept
    within 1/100..100, since on separable data the best T would be 0.

    Source: Guo et al. 2017, section 4.2.
    """
    check(logits, labels)
    z, y = logits.detach().double(), labels.long()
    low, high = -4.605170185988091, 4.605170185988091  # log of 1/100 and 100

    def slope(log_scale: float) -> float:
        scale = torch.tensor(log_scale, dtype=torch.float64).exp().to(z.device)
        expected = ((z * scale).softmax(1) * z).sum(1)
        return float((expected - z.gather(1, y[:, None])[:, 0]).mean())

    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(torch.tensor(-(low + high) / 2, dtype=torch.float64).exp())
