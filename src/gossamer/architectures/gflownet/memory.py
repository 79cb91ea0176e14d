"""What a training has seen: every object with its scores, scored once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .order import check_scores

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
        """Half from the top tenth by the first objective, half from the rest, with replacement."""
        keys = list(self.scores)
        order = torch.stack([self.scores[key][0] for key in keys]).argsort(descending=True)
        top = max(1, len(keys) // 10)
        first = order[torch.randint(top, (count // 2,), generator=rng)]
        rest = order[torch.randint(len(keys), (count - count // 2,), generator=rng)]
        return torch.tensor([keys[i] for i in torch.cat([first, rest]).tolist()])
