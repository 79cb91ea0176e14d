"""Proximal operators and projections: L1, l0, simplex, sparse simplex; FISTA on top of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """The proximal operator of `threshold * ||x||_1`: shrinks every entry towards 0, stopping at 0.

    Args:
        x: any shape. threshold: >= 0, a number or a tensor that broadcasts against `x`.

    >>> soft_threshold(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.,  0.,  2.])
    """
    level = torch.as_tensor(threshold, dtype=x.dtype, device=x.device)
    if not bool((level >= 0).all()):
        raise ConfigError(f"threshold must not be negative, got {threshold}")
    return x - torch.maximum(torch.minimum(x, level), -level)


def _largest(scores: Tensor, k: int, dim: int) -> Tensor:
    """Indices of the k largest entries along `dim`, largest first; ties go to the lower index."""
    return scores.sort(dim=dim, descending=True, stable=True).indices.narrow(dim, 0, k)


def _check_k(k: int, size: int) -> None:
    if not 0 < k <= size:
        raise ConfigError(f"k must lie in 1..{size}, got {k}")


def _check_finite(x: Tensor) -> None:
    if not torch.isfinite(x).all():
        raise NumericsError("cannot project a tensor that holds NaN or infinity")


def project_l0(x: Tensor, k: int, dim: int | None = None) -> Tensor:
    """The nearest tensor with at most `k` non-zeros along `dim` (None: in all), keeping the largest |x|.

    Ties go to the lower index, so the count never depends on equal values.

    >>> project_l0(torch.tensor([1.0, -3.0, 2.0]), 1)
    tensor([ 0., -3.,  0.])
    """
    _check_finite(x)
    flat = x.reshape(-1) if dim is None else x
    axis = 0 if dim is None else dim
    _check_k(k, flat.shape[axis])
    index = _largest(flat.abs(), k, axis)
    return torch.zeros_like(flat).scatter(axis, index, flat.gather(axis, index)).reshape(x.shape)


def project_simplex(x: Tensor, total: float = 1.0, dim: int = -1) -> Tensor:
    """The nearest point with non-negative entries that sum to `total` along `dim`.

    Source: Held, Wolfe and Crowder 1974; the sort-based form of Duchi et al. 2008.

    >>> project_simplex(torch.tensor([0.5, 0.5, -1.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    return project_sparse_simplex(x, x.shape[dim], total, dim)


def project_sparse_simplex(x: Tensor, k: int, total: float = 1.0, dim: int = -1) -> Tensor:
    """The nearest point of the simplex (non-negative, sum `total`) with at most `k` non-zeros along `dim`.

    The support is the k largest entries (ties to the lower index), projected on the simplex; this greedy
    choice is exact. Differentiable almost everywhere through the kept entries.

    Source: Kyrillidis, Becker, Cevher and Koch 2013, theorem 1.
    Raises:
        ConfigError: k outside 1..size, or total not positive. NumericsError: NaN or infinity.
    """
    _check_finite(x)
    _check_k(k, x.shape[dim])
    if not total > 0:
        raise ConfigError(f"total must be positive, got {total}")
    index = _largest(x, k, dim)
    top = x.gather(dim, index).movedim(dim, -1)  # (..., k), falling
    excess = top.cumsum(-1) - total
    ranks = torch.arange(1, k + 1, dtype=x.dtype, device=x.device)
    support = (top - excess / ranks > 0).sum(-1, keepdim=True).clamp(min=1)
    theta = excess.gather(-1, support - 1) / support
    values = (top - theta).clamp(min=0).movedim(-1, dim)
    return torch.zeros_like(x).scatter(dim, index, values)


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped: the point, the steps taken, and whether the tolerance was reached."""

    x: Tensor
    steps: int
    converged: bool


def fista(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, float], Tensor],
    start: Tensor,
    lipschitz: float,
    *,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> Solution:
    """Minimise smooth + simple by accelerated proximal gradient steps with adaptive restart.

    Args:
        gradient: gradient of the smooth part. prox(v, t): proximal operator of t times the simple part.
        start: first point, any shape (not changed).
        lipschitz: Lipschitz constant of `gradient`, > 0; the step length is its inverse.
        tolerance: stop when a step moves by at most tolerance * max(1, ||x||).
    Source: Beck and Teboulle 2009 (FISTA); O'Donoghue and Candes 2015 (gradient restart).

    >>> f = fista(lambda x: x - 3.0, lambda v, t: soft_threshold(v, t), torch.zeros(1), 1.0)
    >>> f.x, f.converged
    (tensor([2.]), True)
    """
    if not lipschitz > 0:
        raise ConfigError(f"lipschitz must be positive, got {lipschitz}")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    x, ahead, momentum = start, start, 1.0
    for step in range(1, steps + 1):
        new = prox(ahead - gradient(ahead) / lipschitz, 1 / lipschitz)
        moved = new - x
        size = float(moved.norm())
        if not size < float("inf"):
            raise NumericsError(f"FISTA diverged at step {step}; is lipschitz={lipschitz} too small?")
        if size <= tolerance * max(1.0, float(new.norm())):
            return Solution(new, step, True)
        if float(((ahead - new) * moved).sum()) > 0:  # momentum points uphill: start afresh
            momentum = 1.0
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / after * moved
        x, momentum = new, after
    return Solution(x, steps, False)
