"""The distinct sets of active units among the states of many points: what depends on the set is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

DENSE = 16  # up to so many times more distinct sets than states of a point, one matrix product beats gathering


class ActiveSets:
    """Distinct rows of `index`.

    Args:
        index: (n, S, k) int64, units of each state in rising order, in [0, base).
        base: exclusive upper bound of the entries.

    Attributes:
        rows: (U, k) the distinct sets. inverse: (n, S) which of them a state has.
    """

    def __init__(self, index: Tensor, base: int) -> None:
        n, states, k = index.shape
        if base**k < 1 << 62:
            powers = torch.tensor([base ** (k - 1 - i) for i in range(k)], device=index.device)
            keys, inverse = torch.unique((index * powers).sum(2), return_inverse=True)
            self.rows = keys[:, None] // powers % base
        else:
            self.rows, inverse = torch.unique(index.reshape(-1, k), dim=0, return_inverse=True)
        self.inverse = inverse.view(n, states)

    def _dense(self) -> bool:
        return len(self.rows) <= DENSE * max(1, self.inverse.shape[1])

    def dot(self, y: Tensor, means: Tensor) -> Tensor:
        """y_n . means of each state's set: (n, D), (U, D) -> (n, S)."""
        if self._dense():
            return (y @ means.T).gather(1, self.inverse)
        return torch.bmm(means[self.inverse], y[:, :, None])[:, :, 0]

    def pool(self, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Per set: its weight (U,), and the weighted sum of data (U, D), over all points and states; q is (n, S)."""
        size = len(self.rows)
        weight = q.new_zeros(size).index_add_(0, self.inverse.reshape(-1), q.reshape(-1))
        if self._dense():
            table = q.new_zeros(len(q), size).scatter_add_(1, self.inverse, q)
            return weight, table.T @ y
        total = q.new_zeros(size, y.shape[1])
        total.index_add_(0, self.inverse.reshape(-1), (q[:, :, None] * y[:, None]).flatten(0, 1))
        return weight, total

    def expect(self, q: Tensor, means: Tensor) -> Tensor:
        """sum_S q means of its set: (n, S), (U, D) -> (n, D)."""
        if self._dense():
            return q.new_zeros(len(q), len(self.rows)).scatter_add_(1, self.inverse, q) @ means
        return torch.bmm(q[:, None], means[self.inverse])[:, 0]
