"""What the models with linear superposition and Gaussian noise share: projections, Gram tables, the dictionary update.

Noise is `sigma`: a standard deviation (0-d), one per dimension (D,), or, for spike and slab, a covariance (D, D).
Where values are missing, every point has a Gram matrix of its own, and every dimension its own least squares.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model import Batch, Stats

TINY = 1e-12
DEAD = 1e-8  # units used less than so many times in all keep their column


def precision(sigma: Tensor, dimensions: int) -> Tensor:
    """Inverse noise covariance: (D,) its diagonal, or (D, D)."""
    if sigma.ndim == 2:
        return torch.cholesky_inverse(torch.linalg.cholesky(sigma))
    return sigma.square().reciprocal().expand(dimensions)


def project(W: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(b, gram, base): y' P W (n, H); W' P W (1 or n, H, H); log N(y; 0, P^-1) (n,). P is the noise precision."""
    y, D = batch.y, batch.y.shape[1]
    if weight.ndim == 2:
        half = torch.linalg.cholesky(weight)
        white, basis = y @ half, half.T @ W
        base = half.diagonal().log().sum() - 0.5 * (D * math.log(2 * math.pi) + white.square().sum(1))
        return white @ basis, (basis.T @ basis)[None], base
    b = y @ (weight[:, None] * W)
    if batch.mask is None:
        gram = (W.T @ (weight[:, None] * W))[None]
        logs = (weight.log() - math.log(2 * math.pi)).sum()
    else:
        here = batch.mask.to(y)
        h = W.shape[1]
        i, j = torch.triu_indices(h, h, device=y.device)
        table = here @ (weight[:, None] * W[:, i] * W[:, j])
        gram = y.new_zeros(len(y), h, h)
        gram[:, i, j] = table
        gram[:, j, i] = table
        logs = here @ (weight.log() - math.log(2 * math.pi))
    return b, gram, 0.5 * (logs - y.square() @ weight)


def data_sums(batch: Batch, weights: Tensor, codes: Tensor) -> Stats:
    """Sums over points that no model's posterior changes: `yy` (D,), `ys` (D, H), `count` (D,)."""
    weighted = weights[:, None] * batch.y
    here = weights.sum().expand(batch.y.shape[1]) if batch.mask is None else weights @ batch.mask.to(batch.y)
    return {"yy": (weighted * batch.y).sum(0), "ys": weighted.T @ codes, "count": here.clone()}


def spread(batch: Batch, moments: Tensor) -> Tensor:
    """Second moments of codes for the M-step: (H, H) as they are; of each point (n, H, H), summed per dimension."""
    if batch.mask is None:
        return moments
    return (batch.mask.to(moments).T @ moments.flatten(1)).unflatten(1, moments.shape[1:])


def dictionary(W: Tensor, stats: Stats) -> Tensor:
    """The least squares dictionary (sum y <s>')(sum <s s'>)^-1; columns of units that no point uses stay.

    Where values are missing the sums of each dimension hold the points that have it.
    """
    second, ys = stats["ss"], stats["ys"]
    usage = second.diagonal(dim1=-2, dim2=-1)  # (H,) or (D, H)
    used = usage > DEAD
    if second.ndim == 2:
        new = W.clone()
        if used.any():
            new[:, used] = _solve(second[used][:, used], (ys - W[:, ~used] @ second[~used])[:, used])
        return new
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    alone = torch.where((used[:, :, None] & used[:, None]), second, eye * (~used)[:, :, None])
    target = torch.where(used, ys, W)
    return _solve_rows(alone, target)


def _solve(second: Tensor, ys: Tensor) -> Tensor:
    """ys second^-1 for (D, H), (H, H); by least squares of minimal norm where second is singular."""
    factor, failed = torch.linalg.cholesky_ex(second)
    if not failed and _well_conditioned(factor):
        return torch.cholesky_solve(ys.T, factor).T
    return ys @ torch.linalg.pinv(second, hermitian=True)


def _solve_rows(second: Tensor, ys: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(second)
    if not failed.any() and _well_conditioned(factor):
        return torch.cholesky_solve(ys[:, :, None], factor)[:, :, 0]
    return (torch.linalg.pinv(second, hermitian=True) @ ys[:, :, None])[:, :, 0]


def _well_conditioned(factor: Tensor) -> bool:
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return bool((diagonal.amin(-1) > 1e-7 * diagonal.amax(-1)).all())


def residuals(W: Tensor, stats: Stats) -> Tensor:
    """Expected squared residual of each dimension, summed over points: (D,)."""
    second, ys = stats["ss"], stats["ys"]
    square = ((W @ second) if second.ndim == 2 else (W[:, None] @ second)[:, 0]) * W
    return (stats["yy"] - 2 * (W * ys).sum(1) + square.sum(1)).clamp(min=0)


def deviation(W: Tensor, stats: Stats, per_dimension: bool = False) -> Tensor:
    """Standard deviation of the noise, 0-d or (D,)."""
    rest, count = residuals(W, stats), stats["count"]
    variance = rest / count.clamp(min=1) if per_dimension else rest.sum() / count.sum().clamp(min=1)
    return variance.clamp(min=TINY).sqrt()
