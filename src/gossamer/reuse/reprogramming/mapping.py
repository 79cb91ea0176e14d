"""Which source labels stand for which target labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError

KINDS = ("random", "frequency", "iterative")
ASSIGNMENTS = ("greedy", "hungarian")


def counts(predicted: Tensor, labels: Tensor, sources: int, targets: int) -> Tensor:
    """(sources, targets): how many samples of each target class are taken for each source class."""
    flat = torch.bincount(predicted * targets + labels, minlength=sources * targets)
    return flat.view(sources, targets)


def greedy(table: Tensor, per_class: int = 1) -> Tensor:
    """Again and again the largest entry whose row is unused and whose column is not full; ties: lowest row, column.

    Args:
        table: (sources, targets). per_class: source labels for each target.
    Returns:
        (targets, per_class) source labels, best first.
    Raises:
        ConfigError: fewer sources than targets * per_class.

    Not always the largest total: of [[9, 8], [8, 0]] it takes 9 + 0, the best is 8 + 8 (`hungarian`).
    """
    sources, targets = table.shape
    _enough(sources, targets, per_class)
    left = table.double().clone()
    found: list[list[int]] = [[] for _ in range(targets)]
    for _ in range(targets * per_class):
        source, target = divmod(int(left.argmax()), targets)
        found[target].append(source)
        left[source] = -torch.inf
        if len(found[target]) == per_class:
            left[:, target] = -torch.inf
    return torch.tensor(found)


def hungarian(table: Tensor, per_class: int = 1) -> Tensor:
    """As `greedy`, with the largest total."""
    from scipy.optimize import linear_sum_assignment

    sources, targets = table.shape
    _enough(sources, targets, per_class)
    rows, columns = linear_sum_assignment(table.repeat(1, per_class).double().numpy(), maximize=True)
    found = torch.empty(targets, per_class, dtype=torch.long)
    for row, column in zip(rows, columns, strict=True):
        found[column % targets, column // targets] = int(row)
    order = table.T.gather(1, found).argsort(dim=1, descending=True, stable=True)
    return found.gather(1, order)


def _enough(sources: int, targets: int, per_class: int) -> None:
    if per_class < 1 or targets * per_class > sources:
        raise ConfigError(
            f"not enough source labels: {targets} targets with {per_class} each need {targets * per_class} of {sources}"
        )


@dataclass(frozen=True)
class LabelMapping:
    """How labels are mapped.

    Args:
        kind: "random" once; "frequency" once, from predictions before training; "iterative" anew every epoch with
            the present prompt (the authors' default).
        per_class: source labels of each target; their logits are averaged.
        assignment: "greedy" (the authors') or "hungarian".
    """

    kind: str = "iterative"
    per_class: int = 1
    assignment: str = "greedy"

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, KINDS), ("assignment", self.assignment, ASSIGNMENTS)):
            if value not in allowed:
                raise ConfigError(f"{name} of a label mapping must be one of {allowed}, got {value!r}")

    def due(self, epoch: int) -> bool:
        """Whether the map is made anew before this epoch."""
        return epoch == 0 or self.kind == "iterative"

    def make(self, predicted: Tensor, labels: Tensor, sources: int, targets: int, seed: int = 0) -> Tensor:
        """(targets, per_class) source labels from predictions (n,) and target labels (n,)."""
        if self.kind == "random":
            _enough(sources, targets, self.per_class)
            order = torch.randperm(sources, generator=torch.Generator().manual_seed(seed))
            return order[: targets * self.per_class].view(targets, self.per_class)
        rule = greedy if self.assignment == "greedy" else hungarian
        return rule(counts(predicted, labels, sources, targets), self.per_class)
