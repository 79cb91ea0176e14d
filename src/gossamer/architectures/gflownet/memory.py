"""What a training has seen: every object with its scores, scored once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .order import check_scores, non_dominated

Oracle = Callable[[Tensor], Tensor]


class Memory:
    """All objects seen, with their scores; an object is scored once."""

    def __init__(self) -> None:
        self.scores: dict[tuple[int, ...], Tensor] = {}
        self._objectives: int | None = None

    def add(self, objects: Tensor, oracle: Oracle) -> None:
        """Score what is new, in one call."""
        fresh = [key for key in dict.fromkeys(map(tuple, objects.tolist())) if key not in self.scores]
        if fresh:
            found = check_scores(oracle(torch.tensor(fresh)), torch.tensor(fresh), self._objectives)
            self._objectives = found.shape[1]
            self.scores.update(zip(fresh, found, strict=True))

    def of(self, objects: Tensor) -> Tensor:
        """(n, k) scores of known objects."""
        return torch.stack([self.scores[key] for key in map(tuple, objects.tolist())])

    def all(self) -> Tensor:
        """(m, k)."""
        return torch.stack(list(self.scores.values()))

    def best(self, count: int, rng: torch.Generator) -> Tensor:
        """Half from the best, half from all, with replacement.

        The best are the top tenth of one objective, or the objects that no other dominates in several.
        """
        keys, scores = list(self.scores), self.all()
        if scores.shape[1] == 1:
            first = scores[:, 0].argsort(descending=True)[: max(1, len(keys) // 10)]
        else:
            first = non_dominated(scores).nonzero().flatten()
        chosen = first[torch.randint(len(first), (count // 2,), generator=rng)]
        rest = torch.randint(len(keys), (count - count // 2,), generator=rng)
        return torch.tensor([keys[i] for i in torch.cat([chosen, rest]).tolist()])
