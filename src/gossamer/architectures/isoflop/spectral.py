"""How well a mask connects its layer: spectral gaps of the bipartite graph of inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Spectrum:
    """One masked layer.

    Args:
        density: kept fraction. gap: `ramanujan_gap` of the mask. weighted: `weighted_gap` of its weights, relative to
            their largest singular value: 0 where two directions are equally strong.
    """

    name: str
    density: float
    gap: float
    weighted: float


def ramanujan_gap(mask: Tensor) -> float:
    """sqrt(d_left - 1) + sqrt(d_right - 1) - mu_2 of a mask (outputs, ...), with mean degrees.

    At least 0 where the graph is a Ramanujan graph: no sparse graph of these degrees mixes much better.

    Raises:
        ShapeError: fewer than two axes. ConfigError: a mask that keeps nothing, or less than one entry a row or column
            on average.
    """
    matrix = _matrix(mask).double()
    kept = float(matrix.sum())
    left, right = kept / matrix.shape[0], kept / matrix.shape[1]
    if min(left, right) < 1:
        raise ConfigError(
            f"a graph of mean degrees {left:.2g} and {right:.2g} has no gap; keep one entry a row and column"
        )
    return math.sqrt(left - 1) + math.sqrt(right - 1) - _second(matrix)[1]


def weighted_gap(weight: Tensor) -> float:
    """(mu_1 - mu_2) / mu_1 of the absolute weights (outputs, ...); 0 where all are 0."""
    first, second = _second(_matrix(weight).abs().double())
    return (first - second) / first if first > 0 else 0.0


def spectra(model: nn.Module, masks: Mapping[str, Tensor]) -> list[Spectrum]:
    """The gaps of every masked weight, as a report through training.

    Source: Thangarasa et al. 2024 (Sparse-IFT), after Hoang et al. 2023.
    """
    parameters = dict(model.named_parameters())
    return [
        Spectrum(
            name,
            float(mask.double().mean()),
            ramanujan_gap(mask),
            weighted_gap(parameters[name].detach() * mask),
        )
        for name, mask in masks.items()
    ]


def _matrix(values: Tensor) -> Tensor:
    """(outputs, everything else): kernel positions of a convolution are inputs of their own."""
    if values.ndim < 2:
        raise ShapeError(f"a graph needs a weight with inputs and outputs, got shape {tuple(values.shape)}")
    return values.flatten(1)


def _second(matrix: Tensor) -> tuple[float, float]:
    """The two largest singular values."""
    found = torch.linalg.svdvals(matrix)
    return float(found[0]), float(found[1]) if len(found) > 1 else 0.0
