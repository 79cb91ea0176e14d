"""The predictors as values: settings, storage in bits, and one verb, `play`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ...errors import ConfigError, unknown
from ...kernels import native
from .trace import Bits, Trace

HISTORY = 4096  # longest history that a predictor may ask for
ROOM = 16  # tagged tables at most


def geometric(count: int, least: int, most: int) -> list[int]:
    """`count` history lengths from `least` to `most` in geometric progression, rounded, each above the one before.

    Source: Seznec 2005 (O-GEHL). Raises ConfigError where there is no such list.

    >>> geometric(4, 5, 40)
    [5, 10, 20, 40]
    """
    if count == 0:
        return []
    if not (least > 0 and least + count - 1 <= most <= HISTORY):
        raise ConfigError(
            f"{count} rising history lengths from {least} to {most} do not exist; needs 1 <= least, "
            f"least + count - 1 <= most <= {HISTORY}"
        )
    if count == 1:
        return [most]
    lengths: list[int] = []
    for i in range(count):
        wanted = round(least * (most / least) ** (i / (count - 1)))
        lengths.append(max(wanted, lengths[-1] + 1 if lengths else 1))
    return [min(length, most - (count - 1 - i)) for i, length in enumerate(lengths)]


@dataclass(frozen=True)
class Predictor:
    """Base of all predictors. A subclass has `name`, `bits`, and `_settings` for the native code."""

    name: ClassVar[str]

    @property
    def bits(self) -> int:
        """Storage in bits: tables, histories and counters."""
        raise NotImplementedError

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        raise NotImplementedError

    def _within(self, **limits: tuple[int, int]) -> None:
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not (isinstance(value, int) and low <= value <= high):
                raise ConfigError(f"{self.name}: {field} must be a whole number in {low}..{high}, got {value!r}")

    def play(self, trace: Trace, quiet: Bits | None = None) -> Bits:
        """Predict every branch of a trace, in order, learning from each outcome.

        Args:
            quiet: (n,) uint8, 1 for branches that must not allocate entries (only TAGE has a use for it).
        Returns:
            (n,) uint8, 1 where taken was predicted.
        """
        extension = native.extension()
        if extension is None:
            from .reference import play

            return play(self, trace, quiet)
        out = np.empty(len(trace), np.uint8)
        stop = None if quiet is None else np.ascontiguousarray(quiet, np.uint8)
        if stop is not None and stop.shape != out.shape:
            raise ConfigError(f"quiet must have one entry per branch, got {stop.shape} for {len(trace)}")
        numbers, lists = self._settings()
        addresses = (trace.pc.ctypes.data, trace.taken.ctypes.data, 0 if stop is None else stop.ctypes.data)
        extension.branch_run(self.name, numbers, lists, *addresses, out.ctypes.data, len(trace))
        return out


@dataclass(frozen=True)
class Static(Predictor):
    """Always the same direction."""

    taken: int = 1
    name: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        self._within(taken=(0, 1))

    @property
    def bits(self) -> int:
        return 0

    def play(self, trace: Trace, quiet: Bits | None = None) -> Bits:
        return np.full(len(trace), self.taken, np.uint8)


@dataclass(frozen=True)
class Bimodal(Predictor):
    """A two-bit counter for each of 2^log_size addresses, starting weakly not taken. Source: Smith 1981."""

    log_size: int = 13
    name: ClassVar[str] = "bimodal"

    def __post_init__(self) -> None:
        self._within(log_size=(1, 24))

    @property
    def bits(self) -> int:
        return 2 << self.log_size

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        return [self.log_size], []


@dataclass(frozen=True)
class Gshare(Predictor):
    """Two-bit counters indexed by address xor history, starting weakly not taken. Source: McFarling 1993."""

    log_size: int = 13
    history: int = 13
    name: ClassVar[str] = "gshare"

    def __post_init__(self) -> None:
        self._within(log_size=(1, 24), history=(0, 24))
        if self.history > self.log_size:
            raise ConfigError(f"gshare: history={self.history} is longer than an index of {self.log_size} bits")

    @property
    def bits(self) -> int:
        return (2 << self.log_size) + self.history

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        return [self.log_size, self.history], []


@dataclass(frozen=True)
class Tournament(Predictor):
    """A local and a global predictor and a chooser, as in the Alpha 21264 (Kessler 1999)."""

    log_local: int = 10
    local_history: int = 10
    global_history: int = 12
    name: ClassVar[str] = "tournament"

    def __post_init__(self) -> None:
        self._within(log_local=(1, 20), local_history=(1, 20), global_history=(1, 20))

    @property
    def bits(self) -> int:
        local = (self.local_history << self.log_local) + (3 << self.local_history)
        return local + (4 << self.global_history) + self.global_history

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        return [self.log_local, self.local_history, self.global_history], []


@dataclass(frozen=True)
class Perceptron(Predictor):
    """One 8-bit weight per position of the history; trained on a miss or a small sum. Source: Jimenez and Lin 2001.

    The threshold is floor(1.93 history + 14). Outcomes before the first branch count as 0.
    """

    entries: int = 512
    history: int = 32
    name: ClassVar[str] = "perceptron"

    def __post_init__(self) -> None:
        self._within(entries=(1, 1 << 20), history=(0, HISTORY))

    @property
    def bits(self) -> int:
        return 8 * self.entries * (self.history + 1) + self.history

    @property
    def threshold(self) -> int:
        """Sums up to this size are trained on."""
        return int(1.93 * self.history + 14)

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        return [self.entries, self.history, self.threshold], []


@dataclass(frozen=True)
class HashedPerceptron(Predictor):
    """Tables of counters, each indexed by the address and a longer piece of history; the sum decides.

    The first table sees the address alone. Source: Seznec 2005; Tarjan and Skadron 2005.
    """

    tables: int = 8
    log_size: int = 10
    weight_bits: int = 6
    min_history: int = 3
    max_history: int = 128
    name: ClassVar[str] = "hashed-perceptron"

    def __post_init__(self) -> None:
        self._within(tables=(1, ROOM), log_size=(2, 20), weight_bits=(2, 8))
        geometric(self.tables - 1, self.min_history, self.max_history)

    @property
    def lengths(self) -> list[int]:
        """History length of each table."""
        return [0, *geometric(self.tables - 1, self.min_history, self.max_history)]

    @property
    def bits(self) -> int:
        return (self.tables * self.weight_bits << self.log_size) + self.lengths[-1] + 8 + 7

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        return [self.log_size, self.weight_bits], [self.lengths]


@dataclass(frozen=True)
class TAGE(Predictor):
    """Tagged tables with geometric history lengths over a bimodal base. Source: Seznec and Michaud 2006.

    An entry has a tag, a 3-bit counter and 2 bits of usefulness. A miss allocates up to two entries in longer tables;
    where allocations fail often, all usefulness is halved.
    """

    tables: int = 8
    log_size: int = 10
    min_history: int = 5
    max_history: int = 300
    tag_bits: int = 10
    log_base: int = 13
    name: ClassVar[str] = "tage"

    def __post_init__(self) -> None:
        self._within(tables=(0, ROOM), log_size=(2, 20), tag_bits=(2, 16), log_base=(1, 24))
        geometric(self.tables, self.min_history, self.max_history)

    @property
    def lengths(self) -> list[int]:
        """History length of each tagged table."""
        return geometric(self.tables, self.min_history, self.max_history)

    @property
    def bits(self) -> int:
        tagged = self.tables * (self.tag_bits + 3 + 2) << self.log_size
        return (2 << self.log_base) + tagged + (self.lengths[-1] + 4 + 11 + 32 if self.tables else 0)

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        return [self.log_base, self.log_size, self.tag_bits], [self.lengths]


@dataclass(frozen=True)
class TAGESCL(TAGE):
    """TAGE with a loop predictor and a statistical corrector: a simplification of TAGE-SC-L (Seznec 2014, 2016).

    Not equal to the winner of the championship bit by bit: one threshold, no path history, direct-mapped loops.
    """

    log_loops: int = 6
    log_corrector: int = 10
    corrector_global: tuple[int, ...] = (5, 11, 21, 37)
    corrector_local: tuple[int, ...] = (4, 8, 11)
    name: ClassVar[str] = "tage-sc-l"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(log_loops=(1, 12), log_corrector=(4, 16))
        for field, most in (("corrector_global", HISTORY), ("corrector_local", 24)):
            values = tuple(getattr(self, field))
            object.__setattr__(self, field, values)
            if not (1 <= len(values) <= 8 and all(isinstance(v, int) and 0 < v <= most for v in values)):
                raise ConfigError(f"{self.name}: {field} must be 1 to 8 lengths in 1..{most}, got {values}")
            if list(values) != sorted(set(values)):
                raise ConfigError(f"{self.name}: {field} must rise, got {values}")

    @property
    def bits(self) -> int:
        loops = (10 + 10 + 10 + 2 + 3 + 1) << self.log_loops
        tables = 2 + len(self.corrector_global) + len(self.corrector_local)
        corrector = (6 * tables << self.log_corrector) + 256 * self.corrector_local[-1] + 11 + 7
        beyond = max(0, self.corrector_global[-1] - (self.lengths or [0])[-1])
        return super().bits + loops + corrector + beyond

    def _settings(self) -> tuple[list[int], list[list[int]]]:
        numbers, lists = super()._settings()
        sizes = [*numbers, self.log_loops, self.log_corrector]
        return sizes, [*lists, list(self.corrector_global), list(self.corrector_local)]


# What a user may name. The first of a kind has its defaults; `tage` is the small one of the specification's tables.
PREDICTORS: dict[str, Predictor] = {
    "static": Static(),
    "bimodal": Bimodal(),
    "gshare": Gshare(),
    "gshare-16": Gshare(16, 16),
    "tournament": Tournament(),
    "perceptron": Perceptron(),
    "perceptron-128": Perceptron(512, 128),
    "hashed-perceptron": HashedPerceptron(),
    "tage": TAGE(),
    "tage-large": TAGE(12, 11, 4, 640, tag_bits=11),
    "tage-sc-l": TAGESCL(),
    "tage-sc-l-large": TAGESCL(12, 11, 4, 640, tag_bits=11),
}


def build(name: str, **options: Any) -> Predictor:
    """The predictor `name` of `PREDICTORS`, with some settings changed.

    Raises:
        ConfigError: unknown name or setting, with the nearest known ones, or a value out of range.

    >>> build("gshare", log_size=14).bits
    32781
    """
    if name not in PREDICTORS:
        raise unknown("predictor", name, PREDICTORS)
    known = PREDICTORS[name]
    for option in options:
        if option not in (field.name for field in fields(known)):
            raise unknown(f"setting of predictor {name!r}", option, (field.name for field in fields(known)))
    return type(known)(**{**asdict(known), **options})
