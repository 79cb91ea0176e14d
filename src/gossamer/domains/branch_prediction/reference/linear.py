"""Linear predictors, and the folding of a history that several predictors index with."""

from __future__ import annotations

from collections import deque

import numpy as np

from .counters import step


def fold(bits: deque[int], length: int, width: int) -> int:
    """The newest `length` outcomes folded by exclusive or: bit j of the history lands on bit j mod `width`.

    Args:
        bits: newest first. Outcomes before the first branch are 0.
    """
    value = 0
    for j in range(min(length, len(bits))):
        value ^= bits[j] << (j % width)
    return value


class PerceptronSteps:
    def __init__(self, entries: int, history: int, threshold: int) -> None:
        self.weights = np.zeros((entries, history + 1), np.int64)
        self.inputs = np.zeros(history + 1, np.int64)  # [1, newest, ..., oldest]
        self.inputs[0] = 1
        self.threshold = threshold

    def predict(self, pc: int) -> bool:
        self.sum = int(self.weights[pc % len(self.weights)] @ self.inputs)
        return self.sum >= 0

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        sign = 1 if taken else -1
        if (self.sum >= 0) != taken or abs(self.sum) <= self.threshold:
            row = self.weights[pc % len(self.weights)]
            row[:] = np.clip(row + sign * self.inputs, -128, 127)
        self.inputs[2:] = self.inputs[1:-1].copy()
        self.inputs[1:2] = sign


class HashedPerceptronSteps:
    def __init__(self, lengths: list[int], log_size: int, weight_bits: int) -> None:
        self.lengths, self.log_size = lengths, log_size
        self.high, self.low = (1 << (weight_bits - 1)) - 1, -(1 << (weight_bits - 1))
        self.tables = [[0] * (1 << log_size) for _ in lengths]
        self.past: deque[int] = deque(maxlen=max(lengths[-1], 1))
        self.threshold, self.trend = len(lengths), 0

    def predict(self, pc: int) -> bool:
        size = 1 << self.log_size
        self.at = [
            (pc ^ (pc >> (i % self.log_size + 1)) ^ fold(self.past, length, self.log_size)) % size
            for i, length in enumerate(self.lengths)
        ]
        self.sum = sum(2 * table[at] + 1 for table, at in zip(self.tables, self.at, strict=True))
        return self.sum >= 0

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        wrong = (self.sum >= 0) != taken
        if wrong or abs(self.sum) <= self.threshold:
            for table, at in zip(self.tables, self.at, strict=True):
                step(table, at, taken, self.low, self.high)
            self._adapt(wrong)
        self.past.appendleft(int(taken))

    def _adapt(self, wrong: bool) -> None:
        """As many misses as correct sums below the threshold: Seznec 2005, section 3.3."""
        self.trend += 1 if wrong else -1
        if self.trend == 63:
            self.threshold, self.trend = self.threshold + 1, 0
        elif self.trend == -64:
            self.threshold, self.trend = max(0, self.threshold - 1), 0
