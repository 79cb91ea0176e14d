"""The audit as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...runs.document import facts, section, write_document
from ...runs.log import plain
from .audit import Audit

_STYLE = """
.result > * { color: var(--accent); font-weight: 650; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18.4rem), 1fr)); gap: .8rem; }
table.matrix { width: auto; }
.matrix td, .matrix th { min-width: 1.72rem; height: 1.72rem; padding: 0 .1rem; text-align: center; font-size: .8rem;
  border: 1px solid var(--panel); }
.matrix th { color: var(--soft); } .matrix .gone th { color: var(--warn); } .matrix td.none { color: var(--soft); }
.remarks { list-style: none; margin: 0; padding: 0; display: grid; gap: .5rem; }
.remarks li { background: var(--warn-bg); color: var(--warn); border-radius: 8px; padding: .5rem .8rem; }
"""
_LARGEST = 20  # classes of a matrix that is still drawn


def write_page(path: Path, audit: Audit) -> Path:
    """Write the page of an audit; the record itself is embedded as JSON."""
    sizes = ", ".join(f"{count:,} {name}" for name, count in audit.samples.items())
    body = [
        section("Figures", _figures(audit)),
        section("Notes", _remarks(audit.remarks)) if audit.remarks else "",
        section("Test set, all classes: who is taken for whom", _matrices(audit, "test_confusion"))
        if audit.after.test_confusion
        else "",
        section("Forgotten samples: who is taken for whom", _matrices(audit, "forget_confusion")),
        section("Telling forgotten from unseen samples", _attacks(audit)) if audit.after.attacks else "",
        section("Record", facts(_record(audit))),
    ]
    return write_document(
        path,
        f"Unlearning audit: {audit.scenario}",
        "".join(body),
        lead=f"Method {audit.method}; samples: {sizes}",
        style=_STYLE,
        record=plain(audit.as_json()),
    )


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
    return f'{_table(head, rows)}<p class="soft">{note}</p>'


def _table(head: str, rows: Sequence[str], kind: str = "") -> str:
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
    return _table(f"<th></th>{head}", rows, "matrix")


def _cell(count: int, total: int) -> str:
    if not count:
        return '<td class="none">·</td>'
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
    return f'{_table(head, rows)}<p class="soft">{note}</p>'


def _record(audit: Audit) -> dict[str, str]:
    return {
        "settings": json.dumps(plain(audit.settings)),
        "seed": str(audit.seed),
        "request (SHA-256 of the forgotten inputs)": audit.request,
        "retained copies of forgotten inputs": str(audit.copies),
        "density of masked weights": f"{audit.density:.4f}",
        "masked weights that are not 0": str(audit.leaked),
    }
