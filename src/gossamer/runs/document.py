"""The frame of pages: one self-contained HTML file in one style; nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from gossamer.runs.files import write_text


def write_document(
    path: str | Path,
    title: str,
    body: str,
    *,
    lead: str = "",
    style: str = "",
    script: str = "",
    record: Any = None,
    command: str = "",
) -> Path:
    """Write the page of one report.

    Args:
        body: HTML, usually of `section`s. lead: a sentence under the title.
        style, script: CSS and JavaScript of this page alone.
        record: JSON values, embedded as the element with the id "record". command: that made the page.
    Raises:
        CheckpointError: the file cannot be written. ValueError: a number in the record is not finite.
    """
    said = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    made = f"<footer>Made by <code>{escape(command)}</code></footer>" if command else ""
    own = f"\n{style}" if style else ""
    after = f"<script>{script}</script>" if script else ""
    if record is not None:
        data = json.dumps(record, allow_nan=False).replace("<", "\\u003c")  # "</" would end the element
        after += f'<script type="application/json" id="record">{data}</script>'
    write_text(
        Path(path),
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{house_style()}{own}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{said}{body}{made}</main>{after}</body></html>\n",
    )
    return Path(path)


def house_style() -> str:
    """The CSS that all pages share."""
    return files("gossamer.runs").joinpath("page.css").read_text(encoding="utf-8")


def section(title: str, *content: str) -> str:
    """A panel with a heading; without one where the title is empty."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{''.join(content)}</section>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Cells as text, columns to the right except those in `left`."""

    def line(kind: str, cells: Sequence[str]) -> str:
        inner = (f"<{kind}{' class=left' if i in left else ''}>{escape(cell)}</{kind}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", headings)}</thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, str]) -> str:
    """Names and what is said of them, one below the other."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f'<dl class="facts">{pairs}</dl>'


def picture(png: bytes, says: str) -> str:
    """A PNG inside the page; `says` is read to those who do not see it."""
    return f'<img alt="{escape(says)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
