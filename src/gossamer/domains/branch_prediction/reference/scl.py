"""The simplified TAGE-SC-L: TAGE, a loop predictor, and a statistical corrector."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .counters import step
from .linear import fold
from .tage import TageSteps

if TYPE_CHECKING:
    from ..predictors import TAGESCL

SURE, AGE, TRIPS, LOCALS = 3, 7, 1023, 256


@dataclass
class Loop:
    tag: int = 0
    trips: int = 0  # outcomes `way` before one of the other way; 0: not known
    now: int = 0
    confidence: int = 0
    age: int = 0  # 0: the entry is free
    way: bool = False


class LoopSteps:
    def __init__(self, log_size: int) -> None:
        self.log_size = log_size
        self.table = [Loop() for _ in range(1 << log_size)]

    def sure(self, pc: int) -> bool:
        self.row = pc % len(self.table)
        self.tag = (pc >> self.log_size) % 1024
        loop = self.table[self.row]
        self.hit = loop.age > 0 and loop.tag == self.tag
        self.guess = loop.way if loop.now < loop.trips else not loop.way
        return self.hit and loop.confidence == SURE

    def update(self, taken: bool, missed: bool) -> None:
        loop = self.table[self.row]
        if not self.hit:
            self._claim(loop, taken, missed)
        elif loop.confidence == SURE and self.guess != taken:
            self.table[self.row] = Loop()
        else:
            if loop.confidence == SURE and missed:
                loop.age = min(loop.age + 1, AGE)
            self._count(loop, taken)

    def _claim(self, loop: Loop, taken: bool, missed: bool) -> None:
        if missed and loop.age > 0:
            loop.age -= 1
        elif missed:
            self.table[self.row] = Loop(self.tag, age=AGE, way=not taken)

    def _count(self, loop: Loop, taken: bool) -> None:
        if taken == loop.way:
            loop.now += 1
            if loop.now > TRIPS or (loop.trips and loop.now > loop.trips):
                loop.confidence = loop.trips = 0
            if loop.now > TRIPS:
                loop.age = 0
            return
        if loop.now == 0:  # twice the other way: the loop runs in that direction
            self.table[self.row] = Loop()
            return
        if loop.trips and loop.now == loop.trips:
            loop.confidence = min(loop.confidence + 1, SURE)
        else:
            loop.trips, loop.confidence = loop.now, 0
        loop.now = 0


class TageSclSteps:
    def __init__(self, settings: TAGESCL) -> None:
        self.settings = settings
        self.tage = TageSteps(settings.lengths, settings.log_base, settings.log_size, settings.tag_bits)
        self.loops = LoopSteps(settings.log_loops)
        tables = 2 + len(settings.corrector_global) + len(settings.corrector_local)
        self.tables = [[0] * (1 << settings.log_corrector) for _ in range(tables)]
        self.past: deque[int] = deque(maxlen=settings.corrector_global[-1])
        self.locals = [0] * LOCALS
        self.needed, self.trust = 8 * 35, 0

    def _places(self, pc: int, confidence: int) -> list[int]:
        log, size = self.settings.log_corrector, 1 << self.settings.log_corrector
        low, own = pc ^ (pc >> log), self.locals[pc % LOCALS]
        at = [low << 1 ^ self.before, low << 3 ^ confidence << 1 ^ self.before]
        for i, length in enumerate(self.settings.corrector_global):
            at.append(low ^ (pc >> (i + 1)) ^ fold(self.past, length, log))
        for length in self.settings.corrector_local:
            bits = own % (1 << length)
            at.append(low ^ bits ^ (bits >> log))
        return [place % size for place in at]

    def predict(self, pc: int) -> bool:
        self.main = self.tage.predict(pc)
        confidence = self.tage.confidence(pc)
        self.sure = self.loops.sure(pc)
        self.looped = self.sure and self.trust >= 0
        self.before = self.loops.guess if self.looped else self.main
        self.at = self._places(pc, confidence)
        votes = [2 * table[at] + 1 for table, at in zip(self.tables, self.at, strict=True)]
        self.sum = sum(votes) + votes[0] + votes[1]
        threshold = self.needed // 8
        needed = threshold if confidence == 3 else threshold // 2
        return self.sum >= 0 if not self.looped and abs(self.sum) >= needed else self.before

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        corrected = self.sum >= 0
        if self.sure and self.loops.guess != self.main:
            self.trust = min(self.trust + 1, 63) if self.loops.guess == taken else max(self.trust - 1, -64)
        self.loops.update(taken, self.main != taken)
        if corrected != self.before and not self.looped:
            self.needed = max(self.needed - 1, 32) if corrected == taken else min(self.needed + 1, 8 * 255)
        if corrected != taken or abs(self.sum) < self.needed // 8:
            for table, at in zip(self.tables, self.at, strict=True):
                step(table, at, taken, -32, 31)
        row = pc % LOCALS
        self.locals[row] = (2 * self.locals[row] + taken) % (1 << 32)
        self.past.appendleft(int(taken))
        self.tage.update(pc, taken, quiet)
