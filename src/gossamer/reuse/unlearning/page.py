"""The audit as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...runs.files import write_text
from ...runs.log import plain
from .audit import Audit

_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#f6f5f1, #14171b); --panel: light-dark(#fff, #1c2026);
  --ink: light-dark(#1c1f24, #e8e6e1); --soft: light-dark(#5b626d, #a0a7b2); --line: light-dark(#dcdad3, #333a44);
  --accent: light-dark(#0b6e6e, #57c7c0); --warn: light-dark(#8a5a00, #f0c36d);
  --warn-bg: light-dark(#fdf3dc, #34290f); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 0 0 .7rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; color: var(--soft); font-weight: 600; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.3rem;
  margin-top: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.figures { width: 100%; }
.figures th, .figures td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
.figures th:first-child { text-align: left; } .figures tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-size: .84rem; } .result > * { color: var(--accent); font-weight: 650; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18.4rem), 1fr)); gap: .8rem; }
.matrix td, .matrix th { min-width: 1.72rem; height: 1.72rem; padding: 0 .1rem; text-align: center; font-size: .8rem;
  border: 1px solid var(--panel); }
.matrix th { color: var(--soft); font-weight: 600; } .matrix .gone th { color: var(--warn); }
.matrix td.faint { color: var(--soft); }
.remarks { list-style: none; margin: 0; padding: 0; display: grid; gap: .5rem; }
.remarks li { background: var(--warn-bg); color: var(--warn); border-radius: 8px; padding: .5rem .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""
_LARGEST = 20  # classes of a matrix that is still drawn


def write_page(path: Path, audit: Audit) -> Path:
    """Write the page of an audit; the record itself is embedded as JSON."""
    write_text(path, render(audit))
    return path


def render(audit: Audit) -> str:
    """The page as HTML text."""
    title = f"Unlearning audit: {audit.scenario}"
    sizes = ", ".join(f"{count:,} {name}" for name, count in audit.samples.items())
    body = [
        f'<h1>{escape(title)}</h1><p class="soft">Method {escape(audit.method)}; samples: {sizes}</p>',
        _section("Figures", _figures(audit)),
        _section("Notes", _remarks(audit.remarks)) if audit.remarks else "",
        _section("Test set, all classes: who is taken for whom", _matrices(audit, "test_confusion"))
        if audit.after.test_confusion
        else "",
        _section("Forgotten samples: who is taken for whom", _matrices(audit, "forget_confusion")),
        _section("Telling forgotten from unseen samples", _attacks(audit)) if audit.after.attacks else "",
        _section("Record", _record(audit)),
    ]
    data = json.dumps(plain(audit.as_json()), allow_nan=False).replace("<", "\\u003c")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )
    script = f'<script type="application/json" id="record">{data}</script>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(body)}</main>{script}</body></html>\n'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _figures(audit: Audit) -> str:
    names = ("", "UA", "MIA", "RA", "TA", f"gap of {audit.method}", "seconds")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for name, *values, seconds in audit.rows():
        cells = "".join(f"<td>{_number(value)}</td>" for value in values) + f"<td>{_number(seconds, 2)}</td>"
        mark = ' class="result"' if name == audit.method else ""
        rows.append(f"<tr{mark}><th scope='row'>{escape(name)}</th>{cells}</tr>")
    note = (
        "UA: 100 − accuracy on the forgotten samples. MIA: forgotten samples that a membership attack takes for "
        "unseen. RA, TA: accuracy on retained and test samples. All in %; closest to retraining is best, not highest."
    )
    return f'{_table("figures", head, rows)}<p class="soft">{note}</p>'


def _table(kind: str, head: str, rows: Sequence[str]) -> str:
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def _remarks(remarks: Sequence[str]) -> str:
    return f'<ul class="remarks">{"".join(f"<li>{escape(remark)}</li>" for remark in remarks)}</ul>'


def _matrices(audit: Audit, which: str) -> str:
    whole = audit.scenario.startswith("class")
    gone = {index for index, row in enumerate(audit.after.forget_confusion) if whole and any(row)}
    shown = {"before": audit.before, "after": audit.after}
    if "retrain" in audit.references:
        shown["retrained"] = audit.references["retrain"]
    parts = [f"<div><h3>{name}</h3>{_matrix(getattr(f, which), gone)}</div>" for name, f in shown.items()]
    note = '<p class="soft">Rows: true class, columns: answer; shade: share of the row.</p>'
    return f'<div class="pair">{"".join(parts)}</div>{note}'


def _matrix(counts: Sequence[Sequence[int]], gone: set[int]) -> str:
    if len(counts) > _LARGEST:
        right = sum(row[index] for index, row in enumerate(counts))
        return f'<p class="soft">{len(counts)} classes: {right} of {sum(map(sum, counts))} right; see the record.</p>'
    head = "".join(f"<th>{label}</th>" for label in range(len(counts)))
    rows = []
    for label, row in enumerate(counts):
        total = sum(row)
        if not total:
            continue
        cells = "".join(_cell(count, total) for count in row)
        mark = ' class="gone"' if label in gone else ""
        rows.append(f"<tr{mark}><th scope='row'>{label}</th>{cells}</tr>")
    return _table("matrix", f"<th></th>{head}", rows)


def _cell(count: int, total: int) -> str:
    if not count:
        return '<td class="faint">·</td>'
    shade = round(8 + 62 * count / total)
    return f'<td style="background: color-mix(in srgb, var(--accent) {shade}%, transparent)">{count}</td>'


def _attacks(audit: Audit) -> str:
    names = list(audit.after.attacks)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names, "retained against test"))
    rows = []
    for arm, figures in audit.arms().items():
        cells = "".join(f"<td>{_number(figures.attacks.get(name))}</td>" for name in names)
        rows.append(f"<tr><th scope='row'>{escape(arm)}</th>{cells}<td>{_number(figures.privacy)}</td></tr>")
    note = (
        "Area under the curve in % of a threshold on each score; 50: cannot be told apart. Last column: balanced "
        "accuracy of a threshold attack on the retained samples, 50: their privacy holds."
    )
    return f'{_table("figures", head, rows)}<p class="soft">{note}</p>'


def _record(audit: Audit) -> str:
    rows = {
        "settings": json.dumps(plain(audit.settings)),
        "seed": str(audit.seed),
        "request (SHA-256 of the forgotten inputs)": audit.request,
        "retained copies of forgotten inputs": str(audit.copies),
        "density of masked weights": f"{audit.density:.4f}",
        "masked weights that are not 0": str(audit.leaked),
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows.items()) + "</dl>"
