"""Labels of channels: integers that are united where the network forces channels to live and die together."""

from __future__ import annotations

import torch
from torch import Tensor

FIXED = -1  # what can not shrink: batch, positions, the network's input, constants


class Labels:
    """Disjoint sets of labels, some of them frozen for a reason."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new labels."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """The label that stands for the set of `label`."""
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def reason(self, label: int) -> str | None:
        """Why the set of `label` is frozen, None if it is free."""
        return self.reasons.get(self.find(label))

    def unite(self, a: Tensor, b: Tensor, reason: str = "it is added to something that cannot shrink") -> None:
        """Element by element, broadcasting; what meets FIXED is frozen for `reason`."""
        a, b = torch.broadcast_tensors(a, b)
        base = len(self.parent) + 1  # a pair as one number: faster than unique rows
        for pair in ((a - FIXED) * base + (b - FIXED)).unique().tolist():
            x, y = pair // base + FIXED, pair % base + FIXED
            if x == FIXED or y == FIXED:
                self._freeze(max(x, y), reason)
            else:
                self._join(self.find(x), self.find(y))

    def _join(self, x: int, y: int) -> None:
        if x == y:
            return
        low, high = min(x, y), max(x, y)
        self.parent[high] = low
        why = self.reasons.pop(high, None)
        if why is not None:
            self.reasons.setdefault(low, why)

    def _freeze(self, label: int, reason: str) -> None:
        if label != FIXED:
            self.reasons.setdefault(self.find(label), reason)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """These labels stay for ever."""
        for label in labels.unique().tolist():
            self._freeze(label, reason)


def fixed(ndim: int) -> Tensor:
    """The label tensor of something that has no channels."""
    return torch.full((1,) * ndim, FIXED)


def is_fixed(label: Tensor) -> bool:
    """Whether there is no channel in a label tensor."""
    return bool((label == FIXED).all())


def compress(label: Tensor) -> Tensor:
    """The same labels with size 1 wherever they do not vary."""
    for dim in range(label.ndim):
        if label.shape[dim] > 1 and bool((label == label.narrow(dim, 0, 1)).all()):
            label = label.narrow(dim, 0, 1)
    return label.clone()
