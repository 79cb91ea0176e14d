"""The states that Expectation Truncation considers for a data point, and moments of distributions over them."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import torch
from torch import Tensor

from ...errors import ConfigError, DataError

MEMORY = 1 << 30  # bytes that the table of states may take


def count_states(units: int, candidates: int, active: int, values: int = 1) -> int:
    """Number of considered states: zero, all singletons, and 2..`active` units among the candidates.

    >>> count_states(10, 8, 5), count_states(10, 10, 10), count_states(4, 4, 4, values=2)
    (221, 1024, 81)
    """
    return 1 + values * units + sum(comb(candidates, k) * values**k for k in range(2, active + 1))


class StateSpace:
    """States of `units` latents with values in {0, *values}, truncated by candidates and number of active units.

    A distribution over them is a matrix q (n, size) whose columns are: the zero state; the singletons, unit by unit
    and value by value; the states with 2..active non-zero entries, by rising number of them. The last kind lies on the
    candidates of the data point, an int64 matrix (n, candidates) of units in rising order.

    Args:
        units: H. candidates: H'. active: gamma, 1 <= gamma <= H' <= H.
        values: the non-zero values.
        like: a tensor whose device and type the tables get.
    Raises:
        ConfigError: the three numbers are out of order.
        DataError: the tables would exceed `MEMORY`.
    Source: prosper section 3.1; Lücke and Eggert 2010.
    """

    def __init__(
        self, units: int, candidates: int, active: int, values: tuple[float, ...] = (1.0,), like: Tensor | None = None
    ) -> None:
        if not 1 <= active <= candidates <= units:
            raise ConfigError(
                "needs 1 <= max_active <= n_candidates <= n_components, "
                f"got max_active={active}, n_candidates={candidates}, n_components={units}"
            )
        self.units, self.candidates, self.active = units, candidates, active
        self.size = count_states(units, candidates, active, len(values))
        pairs = candidates * (candidates + 1) // 2
        bytes_ = 8 * self.size * (candidates + pairs)
        if bytes_ > MEMORY:
            raise DataError(
                f"n_candidates={candidates} and max_active={active} give {self.size} states, whose tables take {bytes_}"
                f" bytes (limit {MEMORY}): lower n_candidates or max_active"
            )
        like = torch.empty(0, dtype=torch.float64) if like is None else like
        self.values = torch.tensor(values, dtype=like.dtype, device=like.device)
        # positions of the active candidates for k = 2..active, each (C(H', k), k)
        self.subsets = [
            torch.tensor(list(combinations(range(candidates), k)), device=like.device) for k in range(2, active + 1)
        ]
        self.multi = self._multi(values).to(like)
        self.first, self.second = torch.triu_indices(candidates, candidates, device=like.device)
        self.products = self.multi[:, self.first] * self.multi[:, self.second]
        self.counts = torch.stack([(self.multi == v).sum(1) for v in self.values], 1).to(like)

    def _multi(self, values: tuple[float, ...]) -> Tensor:
        """(S, H') all states of 2..active active candidates."""
        blocks = [torch.zeros(0, self.candidates, dtype=torch.float64)]
        for subset in self.subsets:
            assigned = torch.tensor(list(product(values, repeat=subset.shape[1])), dtype=torch.float64)
            block = torch.zeros(len(subset), len(assigned), self.candidates, dtype=torch.float64)
            index = subset.cpu()[:, None].expand(-1, len(assigned), -1)
            blocks.append(block.scatter(2, index, assigned.expand(len(subset), -1, -1)).flatten(0, 1))
        return torch.cat(blocks)

    def split(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The singletons (n, H, values) and the states on candidates (n, S) of a distribution."""
        end = 1 + self.units * len(self.values)
        return q[:, 1:end].unflatten(1, (self.units, len(self.values))), q[:, end:]

    def scatter(self, candidates: Tensor, x: Tensor) -> Tensor:
        """(n, H') on candidates -> (n, H), zero elsewhere."""
        return x.new_zeros(len(x), self.units).scatter(1, candidates, x)

    def mean(self, candidates: Tensor, q: Tensor) -> Tensor:
        """<s>, (n, H)."""
        single, multi = self.split(q)
        return single @ self.values + self.scatter(candidates, multi @ self.multi)

    def activity(self, candidates: Tensor, q: Tensor) -> Tensor:
        """Probability that a unit is not zero, (n, H)."""
        single, multi = self.split(q)
        return single.sum(2) + self.scatter(candidates, multi @ (self.multi != 0).to(q))

    def occurrences(self, q: Tensor) -> Tensor:
        """Expected number of units that have each non-zero value, summed over points: (values,)."""
        single, multi = self.split(q)
        return single.sum((0, 1)) + multi.sum(0) @ self.counts

    def second_moment(self, candidates: Tensor, q: Tensor, per_point: bool = False) -> Tensor:
        """<s s'> summed over points, (H, H), or of each point, (n, H, H)."""
        single, multi = self.split(q)
        n, h = len(q), self.units
        row = torch.arange(n, device=q.device)[:, None] * h * h if per_point else 0
        flat = q.new_zeros((n if per_point else 1) * h * h)
        pairs = multi @ self.products
        index = row + candidates[:, self.first] * h + candidates[:, self.second]
        flat.index_add_(0, index.reshape(-1), pairs.reshape(-1))
        upper = flat.view(-1, h, h)
        squares = single @ self.values.square()
        squares = squares if per_point else squares.sum(0, keepdim=True)
        full = upper + upper.transpose(1, 2) - torch.diag_embed(upper.diagonal(dim1=1, dim2=2) - squares)
        return full if per_point else full[0]

    def decode(self, candidates: Tensor, index: Tensor) -> Tensor:
        """The states with these column numbers: (n, k) -> (n, k, H)."""
        n, k = index.shape
        kinds = len(self.values)
        end = 1 + self.units * kinds
        states = torch.zeros(n, k, self.units, dtype=self.values.dtype, device=index.device)
        one = (index >= 1) & (index < end)
        place = (index - 1).clamp(0, end - 2)
        states.scatter_(2, (place // kinds)[..., None], (self.values[place % kinds] * one)[..., None])
        if len(self.multi):
            many = self.multi[(index - end).clamp(min=0)] * (index >= end)[..., None]
            states.scatter_add_(2, candidates[:, None].expand(-1, k, -1), many)
        return states
