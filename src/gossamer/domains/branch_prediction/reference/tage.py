"""TAGE, folding its histories afresh for every branch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .counters import BimodalSteps
from .linear import fold

DECAY_AFTER = 1024


@dataclass
class Entry:
    tag: int = 0
    counter: int = 0  # -4 .. 3; taken from 0 on
    useful: int = 0  # 0 .. 3

    def train(self, taken: bool) -> None:
        self.counter = min(self.counter + 1, 3) if taken else max(self.counter - 1, -4)


class TageSteps:
    def __init__(self, lengths: list[int], log_base: int, log_size: int, tag_bits: int) -> None:
        self.lengths, self.log_size, self.tag_bits = lengths, log_size, tag_bits
        self.base = BimodalSteps(log_base)
        self.tables = [[Entry() for _ in range(1 << log_size)] for _ in lengths]
        self.past: deque[int] = deque(maxlen=lengths[-1] if lengths else 1)
        self.prefer_alternate, self.pressure, self.random = 0, 0, 1

    def _places(self, pc: int) -> None:
        self.entries, self.tags = [], []
        for i, (table, length) in enumerate(zip(self.tables, self.lengths, strict=True)):
            index = pc ^ (pc >> (i % self.log_size + 1)) ^ fold(self.past, length, self.log_size)
            tag = pc ^ fold(self.past, length, self.tag_bits) ^ (fold(self.past, length, self.tag_bits - 1) << 1)
            self.entries.append(table[index % len(table)])
            self.tags.append(tag % (1 << self.tag_bits))

    def predict(self, pc: int) -> bool:
        self._places(pc)
        hits = [i for i, entry in enumerate(self.entries) if entry.tag == self.tags[i]]
        base = self.base.predict(pc)
        self.provider = self.entries[hits[-1]] if hits else None
        self.rank = hits[-1] if hits else -1
        self.other = self.entries[hits[-2]] if len(hits) > 1 else None
        self.alternate = self.other.counter >= 0 if self.other else base
        self.longest = self.provider.counter >= 0 if self.provider else base
        self.fresh = bool(self.provider and self.provider.useful == 0 and self.provider.counter in (0, -1))
        self.guess = self.alternate if self.fresh and self.prefer_alternate >= 0 else self.longest
        return self.guess

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        allocate = self.guess != taken and not quiet
        if self.provider is None:
            self.base.update(pc, taken)
        else:
            if self.fresh:
                allocate = allocate and self.longest != taken
                if self.longest != self.alternate:
                    change = 1 if self.alternate == taken else -1
                    self.prefer_alternate = min(max(self.prefer_alternate + change, -8), 7)
            self._train(self.provider, pc, taken)
        if allocate:
            self._grow(taken)
        self.past.appendleft(int(taken))

    def _train(self, provider: Entry, pc: int, taken: bool) -> None:
        if provider.useful == 0:
            if self.other:
                self.other.train(taken)
            else:
                self.base.update(pc, taken)
        provider.train(taken)
        if self.longest != self.alternate:
            change = 1 if self.longest == taken else -1
            provider.useful = min(max(provider.useful + change, 0), 3)

    def _grow(self, taken: bool) -> None:
        """Up to two new entries in longer tables than the provider's, never in neighbours."""
        self.random ^= self.random << 13 & 0xFFFFFFFF
        self.random ^= self.random >> 17
        self.random ^= self.random << 5 & 0xFFFFFFFF
        place = self.rank + 1
        if place + 1 < len(self.tables) and self.random & 1:
            place += 1
        failed = made = 0
        while place < len(self.tables) and made < 2:
            entry = self.entries[place]
            if entry.useful:
                failed += 1
            else:
                entry.tag, entry.counter, entry.useful = self.tags[place], 0 if taken else -1, 0
                made += 1
                place += 1
            place += 1
        self.pressure = max(0, self.pressure + failed - made)
        if self.pressure >= DECAY_AFTER:
            self.pressure = 0
            for table in self.tables:
                for entry in table:
                    entry.useful >>= 1

    def confidence(self, pc: int) -> int:
        """0 (weak) .. 3 (strong): how sure the component is that predicted."""
        if self.provider:
            return abs(2 * self.provider.counter + 1) // 2
        return 2 if self.base.strong(pc) else 0
