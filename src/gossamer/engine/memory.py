"""Where values live: one arena, in which a place is used again as soon as its value has been read for the last time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LINE = 16  # floats of a cache line


def place(sizes: Mapping[int, int], steps: Sequence[tuple[Sequence[int], int]]) -> tuple[dict[int, int], int]:
    """Offsets of values in an arena, and its length.

    Takes the first gap that fits, so that a chain of layers goes back and forth between two places.

    Args:
        sizes: floats of each value that is to live in the arena.
        steps: (values read, value written) in order of execution.
    Returns:
        value -> offset, a multiple of a cache line; the arena's length.
    """
    first, last = _lifetimes(sizes, steps)
    offsets: dict[int, int] = {}
    length = 0
    for value in sorted(first, key=lambda v: (first[v], v)):
        taken = sorted(
            (offsets[v], offsets[v] + _rounded(sizes[v]))
            for v in offsets
            if first[v] <= last[value] and last[v] >= first[value]
        )
        offsets[value] = _gap(taken, _rounded(sizes[value]))
        length = max(length, offsets[value] + _rounded(sizes[value]))
    return offsets, length


def _lifetimes(
    sizes: Mapping[int, int], steps: Sequence[tuple[Sequence[int], int]]
) -> tuple[dict[int, int], dict[int, int]]:
    """Step that first touches each value, and step that last does."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, (reads, written) in enumerate(steps):
        for value in (*reads, written):
            if value in sizes:
                first.setdefault(value, index)
                last[value] = index
    return first, last


def _gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    start = 0
    for begin, end in taken:
        if begin - start >= size:
            break
        start = max(start, end)
    return start


def _rounded(size: int) -> int:
    return -(-size // LINE) * LINE
