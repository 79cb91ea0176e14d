"""What the commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def say(line: str) -> None:
    """One line of log, to stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def remarks() -> Iterator[None]:
    """Say what the library warns of inside as one line each, `note: ...`, without the place in the code."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            meant = [one for one in found if not issubclass(one.category, DeprecationWarning | ResourceWarning)]
            for line in dict.fromkeys(str(one.message) for one in meant):
                say(f"note: {line}")


def print_json(value: Any) -> None:
    """Strict JSON to stdout, alone there; NaN and infinity become text."""
    from gossamer.runs.log import plain

    print(json.dumps(plain(value), indent=2, allow_nan=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """A table to stdout: as wide as the terminal, and never cut where the output is a file or a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None)
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(text(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False).print(shown)


def text(value: Any) -> str:
    """A figure for a cell: floats with four digits, a table of figures as `name value` lines, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name} {text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return str(value)


def size(count: int) -> str:
    """Bytes with a unit."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= step:
            return f"{count / step:.2f} {unit}"
    return f"{count} B"
