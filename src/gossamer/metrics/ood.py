"""Telling familiar inputs from foreign ones by a score of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import DataError, NumericsError


def top_probability(logits: Tensor) -> Tensor:
    """Maximum softmax probability (n,) of logits (n, classes): high for familiar inputs.

    Source: Hendrycks and Gimpel 2017.
    """
    return logits.double().softmax(1).amax(1)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a random positive scores above a random negative, ties counting one half.

    Args:
        positive, negative: scores of any shape, at least one each (out-of-distribution detection: the
            confidences of familiar and of foreign inputs). 0.5 is chance, 1 is perfect.

    >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    if not positive.numel() or not negative.numel():
        raise DataError("AUROC needs scores of both kinds, got none of one")
    a, b = positive.flatten().double(), negative.flatten().double()
    if torch.isnan(a).any() or torch.isnan(b).any():
        raise NumericsError("scores hold NaN")
    ordered = b.sort().values
    below = torch.searchsorted(ordered, a, side="left")
    not_above = torch.searchsorted(ordered, a, side="right")
    return float((below + not_above).double().mean() / (2 * len(b)))
