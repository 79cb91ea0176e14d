"""The best sparse line for given potentials, for all lines of a transport plan: what its dual maximises inside.

    >>> cost = torch.tensor([[[0.0, 1.0, 5.0]]])               # one problem, one line of three entries
    >>> lines = sparse_lines(cost, torch.zeros(1, 3), torch.ones(1, 1), k=2, gamma=2.0, plan=True)
    >>> lines.plan
    tensor([[[0.7500, 0.2500, 0.0000]]])
    >>> lines.sums
    tensor([[0.7500, 0.2500, 0.0000]])

A line has scores s = alpha - c. It maximises <s, t> - gamma/2 ||t||^2 over t >= 0 with at most k non-zeros and, in the
semi-dual, a given sum. Only the k largest scores matter, and of these only those above a level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.epilogue import is_eager

_TYPES = (torch.float32, torch.float64)


class SparseLines(NamedTuple):
    """What `sparse_lines` finds.

    Attributes:
        sums: (B, m) mass of each entry over all lines. filled: (B, n) mass of each line.
        level: (B, n) score below which an entry has no mass. star: (B, n) value of the maximum.
        plan: (B, n, m), or of no elements where it was not asked for.
    """

    sums: Tensor
    filled: Tensor
    level: Tensor
    star: Tensor
    plan: Tensor


def sparse_lines(
    cost: Tensor, alpha: Tensor, by: Tensor, k: int, gamma: float, semi: bool = True, plan: bool = False
) -> SparseLines:
    """The maximisers of all lines, with what a dual and its gradient need. Equal scores: the lower index first.

    Args:
        cost: (B, n, m), float32 or float64, contiguous; +inf forbids an entry. alpha: (B, m).
        by: (B, n): in the semi-dual the mass of each line, >= 0, else its potential beta, added to its scores.
        k: most non-zeros of a line, 1..m. gamma: > 0. plan: whether the lines themselves are wanted.
    Raises:
        ConfigError: another dtype, or k or gamma out of range. ShapeError: shapes disagree.
    Source: Liu, Puigcerver and Blondel 2023; Kyrillidis et al. 2013 (the largest k are the support).
    """
    if cost.dtype not in _TYPES or alpha.dtype is not cost.dtype or by.dtype is not cost.dtype:
        found = ", ".join(str(t.dtype) for t in (cost, alpha, by))
        raise ConfigError(f"cost, alpha and by must be all float32 or all float64, got {found}")
    if cost.dim() != 3 or alpha.shape != (cost.shape[0], cost.shape[2]) or by.shape != cost.shape[:2]:
        raise ShapeError(
            f"a cost (B, n, m) needs alpha (B, m) and by (B, n), got {tuple(cost.shape)}, {tuple(alpha.shape)} "
            f"and {tuple(by.shape)}"
        )
    if not 1 <= k <= cost.shape[2] or not gamma > 0:
        raise ConfigError(
            f"a line of {cost.shape[2]} entries needs 1 <= k <= {cost.shape[2]} and gamma > 0: {k}, {gamma}"
        )
    run = _run if is_eager(cost, alpha, by) else _op
    return SparseLines(*run(cost.detach(), alpha.detach(), by.detach(), k, float(gamma), semi, plan))


def sparse_lines_reference(
    cost: Tensor, alpha: Tensor, by: Tensor, k: int, gamma: float, semi: bool, plan: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`sparse_lines` in plain torch, on any device, without a decision on the host."""
    top, place = (alpha.unsqueeze(1) - cost).topk(k)  # (B, n, k), falling
    if semi:
        excess = top.cumsum(-1) - gamma * by.unsqueeze(-1)
        ranks = torch.arange(1, k + 1, dtype=top.dtype, device=top.device)
        support = (top * ranks > excess).sum(-1, keepdim=True).clamp(min=1)
        level = excess.gather(-1, support - 1) / support
    else:
        level = -by.unsqueeze(-1)
    mass = (top - level).clamp(min=0) / gamma
    star = gamma / 2 * mass.square().sum(-1)
    if semi:  # <s, t> = level * mass of the line + gamma ||t||^2
        star = star + level.squeeze(-1) * by
    sums = torch.zeros_like(alpha).scatter_add(1, place.flatten(1), mass.flatten(1))
    whole = torch.zeros_like(cost).scatter(-1, place, mass) if plan else cost.new_empty(0)
    return sums, mass.sum(-1), level.squeeze(-1).clone(), star, whole


def _run(
    cost: Tensor, alpha: Tensor, by: Tensor, k: int, gamma: float, semi: bool, plan: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    extension = native.extension() if cost.is_cpu else None
    if extension is None or cost.numel() == 0:
        return sparse_lines_reference(cost, alpha, by, k, gamma, semi, plan)
    cost, alpha, by = cost.contiguous(), alpha.contiguous(), by.contiguous()
    sums, level = torch.empty_like(alpha), torch.empty_like(by)
    star, filled = torch.empty_like(by), torch.empty_like(by)
    whole = torch.zeros_like(cost) if plan else cost.new_empty(0)
    inputs = (cost.data_ptr(), alpha.data_ptr(), by.data_ptr(), *cost.shape, k, gamma, semi)
    outputs = (sums, level, star, filled)
    pointers = [t.data_ptr() for t in outputs]
    threads = native.threads()
    extension.sparse_lines(*inputs, *pointers, whole.data_ptr() if plan else 0, cost.element_size(), threads)
    return sums, filled, level, star, whole


@torch.library.custom_op("gossamer::sparse_lines", mutates_args=())
def _op(
    cost: Tensor, alpha: Tensor, by: Tensor, k: int, gamma: float, semi: bool, plan: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _run(cost, alpha, by, k, gamma, semi, plan)


@_op.register_fake
def _(
    cost: Tensor, alpha: Tensor, by: Tensor, k: int, gamma: float, semi: bool, plan: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    whole = torch.empty_like(cost) if plan else cost.new_empty(0)
    return torch.empty_like(alpha), torch.empty_like(by), torch.empty_like(by), torch.empty_like(by), whole
