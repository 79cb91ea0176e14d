"""The side table: sparse models in a few bits each, and the hybrid of it with another predictor."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError, ConfigError
from ...kernels import native
from ...runs.files import write_json
from .features import LONGEST_LOCAL, Window
from .packing import BitReader, BitWriter
from .predictors import Predictor
from .trace import Bits, Trace

FORMAT = 1


@dataclass(frozen=True)
class Layout:
    """Widths of the fields of an entry, in bits (a design of ours: the paper's was not read).

    An entry: tag, bias, usefulness counter, number of terms, then its terms, each a position and a signed weight; an
    entry with terms on its own outcomes also holds `window.local` of them. Terms lie in one pool.
    Raises:
        ConfigError: a width out of range.
    """

    window: Window = field(default_factory=Window)
    tag_bits: int = 12
    bias_bits: int = 6
    useful_bits: int = 3
    weight_bits: int = 5
    max_terms: int = 24

    def __post_init__(self) -> None:
        limits = {"tag_bits": (1, 30), "bias_bits": (2, 12), "useful_bits": (1, 6), "weight_bits": (2, 10)}
        for name, (low, high) in {**limits, "max_terms": (1, 255)}.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must lie in {low}..{high}, got {getattr(self, name)}")

    @property
    def position_bits(self) -> int:
        """Of a position in the window."""
        return max(1, (self.window.size - 1).bit_length())

    @property
    def fixed_bits(self) -> int:
        """Of an entry without its terms."""
        return self.tag_bits + self.bias_bits + self.useful_bits + self.max_terms.bit_length()

    def entry_bits(self, positions: tuple[int, ...]) -> int:
        """Of an entry with terms at these positions, its own outcomes included."""
        own = self.window.local if any(p >= self.window.history for p in positions) else 0
        return self.fixed_bits + len(positions) * (self.position_bits + self.weight_bits) + own

    def tag(self, pc: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The partial tags of addresses: all their bits folded by exclusive or."""
        folded = np.zeros(pc.shape, np.uint64)
        for shift in range(0, 64, self.tag_bits):
            folded ^= pc >> np.uint64(shift)
        return (folded & np.uint64((1 << self.tag_bits) - 1)).astype(np.int64)


@dataclass(frozen=True)
class Entry:
    """One branch: taken where bias + sum of weights times outcomes (+1, -1) is not negative.

    Args:
        positions: features of the window, as in `Window`. weights, bias: whole numbers.
    """

    tag: int
    bias: int
    positions: tuple[int, ...]
    weights: tuple[int, ...]


@dataclass(frozen=True)
class SideTable:
    """A set of entries with different tags, searched as a whole (fully associative).

    Raises:
        ConfigError: two entries of one tag, or a number that its field cannot hold.
    """

    layout: Layout
    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        if len({entry.tag for entry in self.entries}) != len(self.entries):
            raise ConfigError("two entries of the side table have the same tag")
        for entry in self.entries:
            self._check(entry)

    def _check(self, entry: Entry) -> None:
        layout = self.layout
        largest, most = (1 << (layout.weight_bits - 1)) - 1, (1 << (layout.bias_bits - 1)) - 1
        fine = (
            0 <= entry.tag < 1 << layout.tag_bits
            and abs(entry.bias) <= most
            and len(entry.positions) == len(entry.weights) <= layout.max_terms
            and all(0 <= p < layout.window.size for p in entry.positions)
            and all(abs(w) <= largest for w in entry.weights)
        )
        if not fine:
            raise ConfigError(f"entry {entry} does not fit the layout {layout}")

    @property
    def bits(self) -> int:
        """Storage in bits: entries, terms, own outcomes, and the register of the global history."""
        if not self.entries:
            return 0
        return self.layout.window.history + sum(self.layout.entry_bits(e.positions) for e in self.entries)

    def hits(self, trace: Trace) -> NDArray[np.int32]:
        """(n,) the entry that each branch finds by its tag, or -1. Other branches with an equal tag find it too."""
        of_tag = np.full(1 << self.layout.tag_bits, -1, np.int32)
        for index, entry in enumerate(self.entries):
            of_tag[entry.tag] = index
        pcs, which = np.unique(trace.pc, return_inverse=True)
        return of_tag[self.layout.tag(pcs)][which]

    def overlay(self, trace: Trace, base: Bits) -> Bits:
        """The predictions with the table in front: an entry decides where its usefulness counter trusts it.

        The counter starts at half its range, goes up where the entry was right and `base` wrong, and down in reverse.
        """
        middle = 1 << (self.layout.useful_bits - 1)
        offsets = np.cumsum([0, *(len(entry.positions) for entry in self.entries)]).tolist()
        columns = (
            offsets,
            [p for entry in self.entries for p in entry.positions],
            [w for entry in self.entries for w in entry.weights],
            [entry.bias for entry in self.entries],
        )
        settings = (self.layout.window.history, middle, 2 * middle - 1)
        hits, out = self.hits(trace), np.empty(len(trace), np.uint8)
        extension = native.extension()
        if extension is None:
            from .reference.side import overlay

            return overlay(self, trace, hits, base)
        base = np.ascontiguousarray(base, np.uint8)
        arrays = (hits.ctypes.data, trace.taken.ctypes.data, base.ctypes.data, out.ctypes.data)
        extension.branch_side(*arrays, len(trace), *columns, *settings)
        return out

    def to_bytes(self) -> bytes:
        """The entries as a string of bits, without the own outcomes and the counters' start (which are known)."""
        writer = BitWriter()
        for entry in self.entries:
            writer.put(entry.tag, self.layout.tag_bits)
            writer.put_signed(entry.bias, self.layout.bias_bits)
            writer.put(len(entry.positions), self.layout.max_terms.bit_length())
            for position, weight in zip(entry.positions, entry.weights, strict=True):
                writer.put(position, self.layout.position_bits)
                writer.put_signed(weight, self.layout.weight_bits)
        return writer.bytes()

    @classmethod
    def from_bytes(cls, layout: Layout, data: bytes, entries: int) -> SideTable:
        """Read what `to_bytes` wrote. Raises CheckpointError for data that is cut short or illegal."""
        reader, found = BitReader(data), []
        try:
            for _ in range(entries):
                tag, bias = reader.take(layout.tag_bits), reader.take_signed(layout.bias_bits)
                terms = [
                    (reader.take(layout.position_bits), reader.take_signed(layout.weight_bits))
                    for _ in range(reader.take(layout.max_terms.bit_length()))
                ]
                found.append(Entry(tag, bias, tuple(p for p, _ in terms), tuple(w for _, w in terms)))
            return cls(layout, tuple(found))
        except (EOFError, ConfigError) as error:
            raise CheckpointError(f"side table is damaged: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the table as JSON: the layout, the entries in words, and their bits in hexadecimal."""
        layout = asdict(self.layout)
        readable = [{**asdict(e), "terms": [self.layout.window.describe(p) for p in e.positions]} for e in self.entries]
        record = {"format": FORMAT, "layout": layout, "bits": self.bits, "entries": readable}
        write_json(Path(path), {**record, "data": self.to_bytes().hex()})

    @classmethod
    def load(cls, path: str | Path) -> SideTable:
        """Read what `save` wrote. Raises CheckpointError for a file that is missing, damaged or of another format."""
        try:
            record: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise CheckpointError(f"{path}: side table of format {record['format']}; this version reads {FORMAT}")
            layout = Layout(**{**record["layout"], "window": Window(**record["layout"]["window"])})
            return cls.from_bytes(layout, bytes.fromhex(record["data"]), len(record["entries"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: no side table ({error})") from error


@dataclass(frozen=True)
class Hybrid:
    """A predictor with a side table in front of it.

    Args:
        block: branches that hit the table do not allocate in the predictor's tagged tables, which frees room.
    """

    base: Predictor
    side: SideTable
    block: bool = False

    @property
    def name(self) -> str:
        """The base's name and the table's size."""
        return f"{self.base.name} + {len(self.side.entries)} sparse"

    @property
    def bits(self) -> int:
        """Storage of both."""
        return self.base.bits + self.side.bits

    def play(self, trace: Trace, quiet: Bits | None = None) -> Bits:
        """As `Predictor.play`."""
        if self.block:
            held = (self.side.hits(trace) >= 0).astype(np.uint8)
            quiet = held if quiet is None else quiet | held
        return self.side.overlay(trace, self.base.play(trace, quiet))


assert LONGEST_LOCAL == 64  # the ring of own outcomes in csrc/predictors/side.hpp
