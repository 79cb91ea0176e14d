"""The table of what is proven, for the README: generated from `results/`, never written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gossamer.errors import ConfigError
from gossamer.runs.files import write_text

BEGIN, END = "<!-- proven:begin -->", "<!-- proven:end -->"


def catalogue(listing: Sequence[dict[str, Any]]) -> str:
    """Markdown table, one row per paper.

    Args:
        listing: what `gossamer.claims.listing()` returns.
    """
    head = "| system | year | kind of sparsity | asserted claims | first of them | measured on |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_row, listing)]) + "\n"


def _row(entry: dict[str, Any]) -> str:
    asserted = [claim for claim in entry["claims"] if claim["kind"] == "asserted"]
    first = asserted[0]["statement"] if asserted else "–"
    date = entry["measured_on"] or "–"
    cells = [
        f"{entry['title']} (`{entry['slug']}`)",
        str(entry["year"]),
        entry["kind"],
        _verdict(entry, asserted),
        first,
        f"{date}, code changed since" if entry["stale"] else date,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _verdict(entry: dict[str, Any], asserted: list[dict[str, Any]]) -> str:
    if entry["measured_on"] is None:
        return "not yet run"
    holding = sum(claim["holds"] is True for claim in asserted)
    return f"{holding} of {len(asserted)} hold"


def update_readme(path: Path, listing: Sequence[dict[str, Any]]) -> bool:
    """Put the table between the two marker comments of a file. Returns whether the file changed.

    Raises:
        ConfigError: the markers are missing or out of order.
    """
    text = path.read_text(encoding="utf-8")
    start, stop = text.find(BEGIN), text.find(END)
    if start < 0 or stop < start:
        raise ConfigError(f"{path} needs the lines {BEGIN} and {END}, in this order")
    new = f"{text[:start]}{BEGIN}\n{catalogue(listing)}{text[stop:]}"
    if new == text:
        return False
    write_text(path, new)
    return True
