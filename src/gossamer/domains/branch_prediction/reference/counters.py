"""Predictors made of two-bit counters."""

from __future__ import annotations

WEAKLY_NOT_TAKEN = 1


def step(table: list[int], at: int, up: bool, low: int, high: int) -> None:
    """Move one saturating counter."""
    table[at] = min(table[at] + 1, high) if up else max(table[at] - 1, low)


class StaticSteps:
    def __init__(self, taken: int) -> None:
        self.taken = bool(taken)

    def predict(self, pc: int) -> bool:
        return self.taken

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        pass


class BimodalSteps:
    def __init__(self, log_size: int) -> None:
        self.table = [WEAKLY_NOT_TAKEN] * (1 << log_size)

    def predict(self, pc: int) -> bool:
        return self.table[pc % len(self.table)] >= 2

    def strong(self, pc: int) -> bool:
        return self.table[pc % len(self.table)] in (0, 3)

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        step(self.table, pc % len(self.table), taken, 0, 3)


class GshareSteps:
    def __init__(self, log_size: int, history: int) -> None:
        self.table = [WEAKLY_NOT_TAKEN] * (1 << log_size)
        self.keep, self.past = 1 << history, 0

    def predict(self, pc: int) -> bool:
        return self.table[(pc ^ self.past) % len(self.table)] >= 2

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        step(self.table, (pc ^ self.past) % len(self.table), taken, 0, 3)
        self.past = (2 * self.past + taken) % self.keep


class TournamentSteps:
    def __init__(self, log_local: int, local_history: int, global_history: int) -> None:
        self.pasts = [0] * (1 << log_local)
        self.local = [3] * (1 << local_history)
        self.all = [WEAKLY_NOT_TAKEN] * (1 << global_history)
        self.choice = [WEAKLY_NOT_TAKEN] * (1 << global_history)
        self.past = 0

    def _both(self, pc: int) -> tuple[bool, bool]:
        return self.local[self.pasts[pc % len(self.pasts)]] >= 4, self.all[self.past] >= 2

    def predict(self, pc: int) -> bool:
        by_local, by_global = self._both(pc)
        return by_global if self.choice[self.past] >= 2 else by_local

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None:
        by_local, by_global = self._both(pc)
        if by_local != by_global:
            step(self.choice, self.past, by_global == taken, 0, 3)
        row = pc % len(self.pasts)
        step(self.local, self.pasts[row], taken, 0, 7)
        step(self.all, self.past, taken, 0, 3)
        self.pasts[row] = (2 * self.pasts[row] + taken) % len(self.local)
        self.past = (2 * self.past + taken) % len(self.all)
