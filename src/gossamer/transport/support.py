"""The non-zeros of a plan as a graph between entries and lines, and the linear system that moves them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DENSE = 512  # entries up to which the system is factorised rather than solved step by step


class Support:
    """Non-zeros of lines (B, n, m); values on them are vectors (nnz,).

    With the non-zeros fixed the plan is t = (alpha - theta - c) / gamma, theta chosen for each line's sum: linear in
    all of its data. What this needs is the mean over each line, and the graph Laplacian that the lines' sums leave.
    """

    def __init__(self, lines: Tensor) -> None:
        self.batch, self.n, self.m = lines.shape
        owner, line, entry = self.index = lines.nonzero(as_tuple=True)
        self.line, self.entry = owner * self.n + line, owner * self.m + entry
        self.counts = lines.new_zeros(self.batch * self.n).index_add_(0, self.line, lines.new_ones(len(owner)))

    def means(self, values: Tensor) -> Tensor:
        """(B n,) mean over each line, 0 over an empty one."""
        return values.new_zeros(len(self.counts)).index_add_(0, self.line, values) / self.counts.clamp(min=1)

    def centred(self, values: Tensor) -> Tensor:
        """(nnz,) values less their line's mean."""
        return values - self.means(values)[self.line]

    def sums(self, values: Tensor) -> Tensor:
        """(B, m) sum over the lines, for each entry."""
        return values.new_zeros(self.batch * self.m).index_add_(0, self.entry, values).view(self.batch, self.m)

    def solve(self, right: Tensor, accuracy: float = 1e-13) -> Tensor:
        """The v (B, m) of least norm with sums(centred(v)) = right, which must be in the range."""
        near = self._factorised(right) if self.m <= DENSE and self.batch == 1 else None
        apply = lambda v: self.sums(self.centred(v.flatten()[self.entry]))  # noqa: E731
        return _conjugate_gradients(apply, right, accuracy, near)

    def _factorised(self, right: Tensor) -> Tensor | None:
        """The solution by Cholesky's method where all entries hang together, up to rounding; else None."""
        on = right.new_zeros(self.n, self.m)
        on[self.line, self.entry] = 1.0
        laplacian = torch.diag(on.sum(0)) - on.T @ (on / self.counts.clamp(min=1).unsqueeze(1))
        factor, wrong = torch.linalg.cholesky_ex(laplacian + 1 / self.m)  # the constant is the one null vector
        pivots = factor.diagonal()
        if bool(wrong) or float(pivots.min()) < 1e-5 * float(pivots.max()):
            return None
        return torch.cholesky_solve((right - right.mean()).T, factor).T


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, accuracy: float, near: Tensor | None = None
) -> Tensor:
    """The smallest solution of a singular but consistent positive semi-definite system, for each row of a batch.

    Args:
        near: where to begin; None: at zero. It must have no part in the null space.
    """
    x = torch.zeros_like(right) if near is None else near
    residual = right if near is None else right - apply(near)
    direction = residual
    square = residual.square().sum(-1, keepdim=True)
    enough = accuracy**2 * right.square().sum(-1, keepdim=True)
    for _ in range(4 * right.shape[-1] + 20):
        if not bool((square > enough).any()):
            break
        image = apply(direction)
        step = _ratio(square, (direction * image).sum(-1, keepdim=True)) * (square > enough)
        x, residual = x + step * direction, residual - step * image
        before, square = square, residual.square().sum(-1, keepdim=True)
        direction = residual + _ratio(square, before) * direction
    return x


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom, or 0 where the problem is already solved."""
    return torch.where(bottom > 0, top / bottom.clamp(min=torch.finfo(bottom.dtype).tiny), 0.0)
