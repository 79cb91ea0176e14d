"""Predictors of a given storage, and sweeps over budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from ...errors import ConfigError, unknown
from .encode import encode
from .identify import Search, find_sparse
from .predictors import TAGE, TAGESCL, Bimodal, Gshare, HashedPerceptron, Perceptron, Predictor, Tournament
from .side import Hybrid, Layout
from .simulate import Plays, simulate
from .trace import Trace

SPARSE = "tage+sparse"  # in a sweep: TAGE with a side table, both within the budget
REGISTER = 64  # bits of history registers that may go beyond a budget, which is a power of two as tables are
SIDE_BYTES = 2048  # of the side table, but at most a quarter of the budget


def _tages(kind: type[TAGE]) -> Iterator[Predictor]:
    for tables in range(4, 13):
        for log_size in range(4, 17):
            small = {"log_loops": 4, "log_corrector": max(4, log_size - 2)} if kind is TAGESCL else {}
            reach = min(640, max(60, 40 * log_size - 100))
            yield kind(tables, log_size, 4, reach, min(14, 5 + log_size // 2), min(24, log_size + 2), **small)


# Kind -> configurations of all sizes, from which the largest that fits is taken.
FAMILIES: dict[str, Callable[[], Iterable[Predictor]]] = {
    "bimodal": lambda: (Bimodal(log) for log in range(1, 25)),
    "gshare": lambda: (Gshare(log, log) for log in range(1, 25)),
    "tournament": lambda: (Tournament(log, log, log + 2) for log in range(2, 19)),
    "perceptron": lambda: (Perceptron(1 << log, h) for log in range(2, 17) for h in (8, 16, 24, 32, 48, 64)),
    "hashed-perceptron": lambda: (HashedPerceptron(n, log, 6, 3, 16 * n) for n in range(4, 13) for log in range(4, 19)),
    "tage": lambda: _tages(TAGE),
    "tage-sc-l": lambda: _tages(TAGESCL),
}


def at_budget(kind: str, bits: int) -> Predictor:
    """The predictor of a kind with the most storage within a budget; registers of up to 64 bits may go beyond it.

    Raises:
        ConfigError: unknown kind, or a budget that is too small for it.

    >>> at_budget("gshare", 8 * 2048)
    Gshare(log_size=13, history=13)
    """
    if kind not in FAMILIES:
        raise unknown("kind of predictor", kind, FAMILIES)
    sizes = list(FAMILIES[kind]())
    fitting = [predictor for predictor in sizes if predictor.bits <= bits + REGISTER]
    if not fitting:
        raise ConfigError(f"{bits} bits are too few for {kind}: the smallest takes {min(p.bits for p in sizes)}")
    return max(fitting, key=lambda predictor: predictor.bits)


@dataclass(frozen=True)
class Point:
    """One predictor of one size on one trace; `misses` of `branches` that follow the split."""

    trace: str
    kind: str
    budget: int  # bits
    bits: int
    branches: int
    misses: int
    mpki: float | None

    @property
    def miss_rate(self) -> float:
        """Misses per branch."""
        return self.misses / self.branches

    def as_json(self) -> dict[str, object]:
        """The fields and the miss rate."""
        return {**asdict(self), "miss_rate": self.miss_rate}


def sweep(
    traces: Sequence[Trace],
    kinds: Sequence[str],
    budgets: Sequence[int],
    split: float = 0.5,
    say: Callable[[str], None] = lambda line: None,
) -> list[Point]:
    """Every kind at every budget on every trace.

    Args:
        kinds: of `FAMILIES`, or `SPARSE`, which profiles the part before the split. budgets: in bits.
    Raises:
        ConfigError: unknown kind, a budget too small, split outside (0, 1).
    """
    points = []
    for kind in kinds:
        if kind not in (*FAMILIES, SPARSE):
            raise unknown("kind of predictor", kind, (*FAMILIES, SPARSE))
        for budget in budgets:  # all that is wrong is said before the work begins
            at_budget(*(("tage", budget - _share(budget)) if kind == SPARSE else (kind, budget)))
    for trace in traces:
        for kind in kinds:
            for budget in budgets:
                predictor = _sparse(trace, budget, split) if kind == SPARSE else at_budget(kind, budget)
                result = simulate(trace, predictor, split)
                points.append(Point(trace.name, kind, budget, result.bits, result.branches, result.misses, result.mpki))
                say(f"{trace.name}, {kind}, {budget / 8192:g} KB: {100 * result.miss_rate:.3f} %")
    return points


def _share(budget: int) -> int:
    """Bits of a budget that a side table gets."""
    return min(8 * SIDE_BYTES, budget // 4)


def _sparse(trace: Trace, budget: int, split: float) -> Plays:
    share = _share(budget)
    base = at_budget("tage", budget - share)
    assert isinstance(base, TAGE)
    report = find_sparse(trace, base, Search(split=split))
    return Hybrid(base, encode(report, share / 8, Layout()).side, block=True)
