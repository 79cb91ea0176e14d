"""Spherical tensors: layout, 3j symbols, harmonics, rotations.

A feature is (n, channels, (lmax + 1)^2): degree l lies in components l^2 .. (l + 1)^2, orders m = -l .. l about the z
axis. All degrees count as even, so what is guaranteed is equivariance to rotations (SPHNet, section 3).
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ConfigError, MissingExtra

Path = tuple[int, int, int]


@cache
def o3() -> Any:
    """The module `e3nn.o3`. Raises MissingExtra without e3nn."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own use of deprecated parts of torch
            from e3nn import o3 as module
    except ImportError as error:
        raise MissingExtra("e3nn", "molecules") from error
    return module


def width(lmax: int) -> int:
    """Components of a feature with degrees 0 .. lmax."""
    return (lmax + 1) ** 2


def degrees(lmax: int) -> Tensor:
    """(width,) the degree of every component."""
    return torch.cat([torch.full((2 * l + 1,), l) for l in range(lmax + 1)])  # noqa: E741


def block(l: int) -> slice:  # noqa: E741
    """Where degree l lies."""
    return slice(l * l, (l + 1) ** 2)


@cache
def three_j(l1: int, l2: int, l3: int) -> Tensor:
    """(2 l1 + 1, 2 l2 + 1, 2 l3 + 1) real 3j symbols of e3nn, float64, of norm 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        symbol: Tensor = o3().wigner_3j(l1, l2, l3, dtype=torch.float64)
    return symbol


def triples(lmax: int, second: int | None = None) -> tuple[Path, ...]:
    """All (l1, l2, l3) with |l1 - l2| <= l3 <= l1 + l2; l1, l3 up to `lmax`, l2 up to `second` (default: the same).

    >>> len(triples(4)), len(triples(3))
    (65, 34)
    """
    if lmax < 0 or (second is not None and second < 0):
        raise ConfigError(f"lmax={lmax}, second={second}: degrees start at 0")
    last = lmax if second is None else second
    return tuple(
        (l1, l2, l3)
        for l1 in range(lmax + 1)
        for l2 in range(last + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax) + 1)
    )


def harmonics(vectors: Tensor, lmax: int) -> Tensor:
    """(n, width) real harmonics of the directions of (n, 3) vectors (x, y, z), component-normalised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Tensor = o3().spherical_harmonics(
            list(range(lmax + 1)), vectors[:, [1, 2, 0]], normalize=True, normalization="component"
        )
    return found


def wigner(rotation: Tensor, l: int) -> Tensor:  # noqa: E741
    """(2 l + 1, 2 l + 1) matrix that a rotation of space (3, 3) does to degree l."""
    order = [1, 2, 0]
    turned = rotation.double().cpu()[order][:, order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Tensor = o3().Irrep(l, 1).D_from_matrix(turned)
    return found


def rotate(feature: Tensor, rotation: Tensor, lmax: int) -> Tensor:
    """A feature (..., width) as it is after a rotation of space."""
    blocks = [feature[..., block(l)] @ wigner(rotation, l).to(feature.dtype).T for l in range(lmax + 1)]  # noqa: E741
    return torch.cat(blocks, -1)
