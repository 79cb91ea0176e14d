"""Balanced grouping: which rows of a matrix should share a strip, so that pruned strips keep most of the weight.

Rows whose large entries stand in the same columns belong together. Several matrices over the same rows (layers that
share their output channels) are grouped jointly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError
from .allocation import budget
from .strips import OutBlock, topk_cells

Array = NDArray[np.float64]
MANY = 256  # rows from which only the better of the two starts is improved
CANDIDATES = 128  # rows that each row is compared with in a pass, at most


@dataclass(frozen=True)
class Part:
    """Importance of one layer's weights and how many of its cells stay.

    Args:
        importance: (rows, in), not negative. pattern, sparsity: how the layer will be pruned.
    """

    importance: Array
    pattern: OutBlock
    sparsity: float

    @property
    def keep(self) -> int:
        """Cells that stay."""
        rows, inputs = self.importance.shape
        return self.pattern.keep((-(-rows // self.pattern.rows), inputs), self.sparsity)

    def strips(self, order: Sequence[int]) -> Array:
        """Sums over the strips of this order, (strips, in)."""
        rows = self.importance[np.asarray(order)]
        padded = np.pad(rows, ((0, -len(rows) % self.pattern.rows), (0, 0)))
        return padded.reshape(-1, self.pattern.rows, rows.shape[1]).sum(1)

    def kept(self, order: Sequence[int]) -> float:
        """Importance that survives pruning in this order."""
        cells = torch.from_numpy(self.strips(order))
        return float(cells[topk_cells(cells, self.keep, self.pattern.balanced)].sum())

    def free(self) -> float:
        """Importance that unstructured pruning to the same sparsity keeps: what no order can exceed."""
        flat = np.sort(self.importance, axis=None)[::-1]
        return float(flat[: budget(1 - self.sparsity, flat.size)].sum())


def kept(parts: Sequence[Part], order: Sequence[int]) -> float:
    """Kept importance of all parts in this order."""
    return sum(part.kept(order) for part in parts)


def group_rows(parts: Sequence[Part], *, passes: int = 4, seed: int = 0) -> list[int]:
    """An order of the rows in which strips of consecutive rows keep as much importance as can be found.

    Greedy: the largest row that is left opens a strip and takes the rows that are most like it. Then rows of
    different strips change places while that raises what is kept. The better of this and the present order, each
    improved by such swaps (the better one only, from 257 rows on), is the result: never worse than the present order.

    Args:
        parts: all over the same rows, and of one strip height.
        passes: over all rows, at most (default 4; a pass without gain is the last). seed: of the candidates for
            swaps, where there are more than 128 rows.
    Returns:
        for each new row the old one.
    Raises:
        ConfigError: no part, or strips of different heights. ShapeError: different numbers of rows.
    Source: after Xu et al. 2023 (SparseByteNN); the search is ours, as the paper's is not published.
    """
    if not parts or len({part.pattern.rows for part in parts}) != 1:
        raise ConfigError(f"rows are grouped for strips of one height, got {[part.pattern.rows for part in parts]}")
    if len({len(part.importance) for part in parts}) != 1:
        raise ShapeError(f"parts have different rows: {[part.importance.shape for part in parts]}")
    rows, height = len(parts[0].importance), parts[0].pattern.rows
    identity = list(range(rows))
    if height == 1 or rows <= height:
        return identity
    rng = np.random.default_rng(seed)
    starts = sorted((identity, _greedy(parts)), key=lambda order: kept(parts, order))
    found = [_improve(parts, start, passes, rng) for start in starts[-1 if rows > MANY else 0 :]]
    best = max(found, key=lambda order: kept(parts, order))
    return best if kept(parts, best) > kept(parts, identity) else identity


def _features(parts: Sequence[Part]) -> Array:
    """Importance above each layer's quantile, side by side."""
    return np.hstack([np.where(p.importance >= _quantile(p), p.importance, 0.0) for p in parts])


def _quantile(part: Part) -> float:
    return float(np.quantile(part.importance, part.sparsity))


def _greedy(parts: Sequence[Part]) -> list[int]:
    features, height = _features(parts), parts[0].pattern.rows
    norms = np.linalg.norm(features, axis=1)
    left = np.ones(len(features), bool)
    order: list[int] = []
    while left.any():
        seed = int(np.argmax(np.where(left, norms, -1.0)))
        left[seed] = False
        strip, total = [seed], features[seed].copy()
        while len(strip) < height and left.any():
            nearest = int(np.argmax(np.where(left, features @ total, -1.0)))
            left[nearest] = False
            strip.append(nearest)
            total += features[nearest]
        order += strip
    return order


def _improve(parts: Sequence[Part], start: list[int], passes: int, rng: np.random.Generator) -> list[int]:
    """Local search by swaps; the best order seen, by what is truly kept."""
    best, most = start, kept(parts, start)
    order = np.array(start)
    for _ in range(passes):
        if not _sweep(parts, order, rng):
            break
        now = kept(parts, order.tolist())
        if now <= most:
            break
        best, most = order.tolist(), now
    return best


def _sweep(parts: Sequence[Part], order: NDArray[np.int64], rng: np.random.Generator) -> int:
    """One pass: each row changes places with the row that gains most, if any does. Changes `order` in place.

    A swap is judged by sum(max(cell - threshold, 0)) at the threshold that now separates kept cells from dropped
    ones: for small changes that is what the kept importance changes by.
    """
    height = parts[0].pattern.rows
    matrix = np.hstack([part.importance for part in parts]).astype(np.float32)
    limits = [np.full(p.importance.shape[1], _threshold(p, order.tolist())) for p in parts]
    limit = np.concatenate(limits).astype(np.float32)
    sums = np.hstack([part.strips(order.tolist()) for part in parts]).astype(np.float32)
    worth = np.maximum(sums - limit, 0).sum(1)
    rows, swapped = len(order), 0
    for place in rng.permutation(rows):
        own = place // height
        others = np.flatnonzero(np.arange(rows) // height != own)
        if len(others) > CANDIDATES:
            others = rng.choice(others, CANDIDATES, replace=False)
        mine, theirs = matrix[order[place]], matrix[order[others]]
        moved = theirs - mine
        here = np.maximum(sums[own] + moved - limit, 0).sum(1)
        there = np.maximum(sums[others // height] - moved - limit, 0).sum(1)
        gain = here + there - worth[own] - worth[others // height]
        top = int(np.argmax(gain))
        if gain[top] > 1e-5 * worth[own]:
            other = int(others[top])
            sums[own] += moved[top]
            sums[other // height] -= moved[top]
            worth[own], worth[other // height] = here[top], there[top]
            order[place], order[other] = order[other], order[place]
            swapped += 1
    return swapped


def _threshold(part: Part, order: Sequence[int]) -> float:
    """The smallest cell that stays in this order."""
    cells = np.sort(part.strips(order), axis=None)[::-1]
    return float(cells[max(0, part.keep - 1)])
