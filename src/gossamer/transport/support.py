"""The non-zeros of a plan as a graph between entries and lines, and the linear system that moves them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
        return _conjugate_gradients(lambda v: self.sums(self.centred(v.flatten()[self.entry])), right, accuracy)


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, accuracy: float) -> Tensor:
    """The smallest solution of a singular but consistent positive semi-definite system, for each row of a batch."""
    x, residual, direction = torch.zeros_like(right), right, right
    square = right.square().sum(-1, keepdim=True)
    enough = accuracy**2 * square
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
