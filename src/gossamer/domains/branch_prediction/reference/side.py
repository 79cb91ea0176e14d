"""The side table in plain Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..side import SideTable
    from ..trace import Bits, Trace


def overlay(table: SideTable, trace: Trace, hits: NDArray[np.int32], base: Bits) -> Bits:
    """`SideTable.overlay`, one branch at a time, with histories as lists (newest first)."""
    window, middle = table.layout.window, 1 << (table.layout.useful_bits - 1)
    past: list[int] = [0] * window.history
    own = [[0] * window.local for _ in table.entries]
    useful = [middle] * len(table.entries)
    out = base.copy()
    for i, (hit, taken) in enumerate(zip(hits.tolist(), trace.taken.tolist(), strict=True)):
        outcome = 1 if taken else -1
        if hit >= 0:
            entry, seen = table.entries[hit], past + own[hit]
            total = entry.bias + sum(w * seen[p] for p, w in zip(entry.positions, entry.weights, strict=True))
            sparse = total >= 0
            if useful[hit] >= middle:
                out[i] = sparse
            if sparse != bool(base[i]):
                change = 1 if sparse == bool(taken) else -1
                useful[hit] = min(max(useful[hit] + change, 0), 2 * middle - 1)
            own[hit] = [outcome, *own[hit][:-1]] if window.local else []
        past = [outcome, *past[:-1]] if window.history else []
    return out
