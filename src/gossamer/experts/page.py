"""The experts of a model on one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from gossamer.runs.document import facts as pairs
from gossamer.runs.document import section, write_document

_STYLE = "td.load { min-width: 3.2rem; text-align: center; }"


def write_page(path: str | Path, title: str, report: dict[str, Any], facts: dict[str, str], command: str = "") -> Path:
    """Write the page: figures of the model, and for every layer the load of its experts and how alike they are.

    Args:
        report: of `evaluate.moe_report`; without loads where it saw no data. facts: name -> text, on top.
        command: that made the page.
    """
    layers = report["layers"]
    loaded = any("load" in layer for layer in layers.values())
    widest = max(len(layer.get("load", ())) for layer in layers.values())
    numbers = "".join(f"<th>{number}</th>" for number in range(widest))
    more = f"{numbers}<th>entropy</th><th>dropped</th>" if loaded else ""
    body = "".join(_row(name, layer, widest, loaded) for name, layer in layers.items())
    note = "Likeness: mean cosine of the experts' weights, 1 for copies."
    if loaded:
        note = (
            "Share of the pairs of tokens and experts that went to each expert. Entropy of the mean gate: 1 where all "
            f"experts are as likely. {note}"
        )
    layers_table = (
        f'<div class="scroll"><table><thead><tr><th>layer</th><th>likeness</th>{more}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="note">{note}</p>'
    )
    content = section("Model", pairs(facts)) + section("Experts", layers_table)
    return write_document(path, title, content, style=_STYLE, command=command)


def _row(name: str, layer: dict[str, Any], widest: int, loaded: bool) -> str:
    cells = ""
    if loaded:
        load = layer["load"]
        most = max(load)
        cells = "".join(
            f'<td class="load" style="background:rgb(59 111 182/{0.75 * share / max(most, 1e-9):.2f})">{share:.1%}</td>'
            for share in load
        )
        cells += "<td></td>" * (widest - len(load))
        cells += f"<td>{layer['entropy']:.3f}</td><td>{layer['dropped']:.1%}</td>"
    return f"<tr><td>{escape(name)}</td><td>{layer['similarity']:.4f}</td>{cells}</tr>"
