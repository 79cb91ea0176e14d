"""The experts of a model on one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from gossamer.runs.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2430, #dfe3ea); --faint: light-dark(#717b8b, #8b95a4);
  --line: light-dark(#e3e6ec, #333a45); --paper: light-dark(#f6f7f9, #14171c); --card: light-dark(#fff, #1c2128); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink); background: var(--paper); }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; } h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1.1rem;
  margin: 1rem 0; overflow-x: auto; } .faint { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 500; color: var(--faint); } th:first-child, td:first-child { text-align: left; }
td.load { min-width: 3.2rem; text-align: center; }
"""


def write_page(path: str | Path, title: str, report: dict[str, Any], facts: dict[str, str], command: str = "") -> Path:
    """Write the page: figures of the model, and for every layer the load of its experts and how alike they are.

    Args:
        report: of `evaluate.moe_report`; without loads where it saw no data. facts: name -> text, on top.
        command: that made the page.
    """
    said = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
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
    made = f'<p class="faint">Made by <code>{escape(command)}</code></p>' if command else ""
    page = (
        f'<main><h1>{escape(title)}</h1><div class="card"><table>{said}</table></div><div class="card"><table><tr>'
        f'<th>layer</th><th>likeness</th>{more}</tr>{body}</table><p class="faint">{note}</p></div>{made}</main>'
    )
    meta = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    write_text(Path(path), f'<!doctype html><html lang="en"><head>{meta}<style>{_STYLE}</style></head>{page}</html>')
    return Path(path)


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
