"""The feature browser: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from gossamer.autoencoders.examples import Example, Feature, Survey
from gossamer.runs.document import facts as pairs
from gossamer.runs.document import section, write_document

_STYLE = """
:root { --hot: 20 110 200; }
@media (prefers-color-scheme: dark) { :root { --hot: 90 170 255; } }
main { max-width: 76rem; } h2 { margin: 0; }
.top { display: grid; grid-template-columns: minmax(16rem, 22rem) 1fr; gap: 1rem; }
.tools { position: sticky; top: 0; background: var(--paper); padding: .6rem 0; margin-top: 1rem; display: flex;
  gap: .6rem; z-index: 1; }
.tools input, .tools select { font: inherit; padding: .35rem .6rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--panel); color: inherit; } .tools input { flex: 1; }
.head { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap; margin-bottom: .5rem; }
.head svg { margin-left: auto; }
.text { font: 13px/1.7 ui-monospace, monospace; white-space: pre; overflow-x: auto; border-top: 1px solid var(--line);
  padding: .15rem 0; } .text b { font-weight: 400; border-radius: 3px; }
.text b.peak { outline: 1px solid rgb(var(--hot)); }
code { background: rgb(128 128 128 / .15); border-radius: 4px; padding: .05rem .3rem; white-space: pre; }
svg text { fill: var(--soft); font-size: 11px; } svg rect { fill: rgb(var(--hot)); } svg line { stroke: var(--line); }
@media (max-width: 50rem) { .top { grid-template-columns: 1fr; } }
"""
_SCRIPT = """
const list = document.getElementById('features'), find = document.getElementById('find'),
  order = document.getElementById('order');
function show() {
  const wanted = find.value.toLowerCase(), cards = [...list.children], key = order.value;
  cards.sort((a, b) => key === 'index' ? a.dataset.index - b.dataset.index : b.dataset[key] - a.dataset[key]);
  for (const card of cards) {
    card.hidden = !(('#' + card.dataset.index) === wanted || card.textContent.toLowerCase().includes(wanted));
    list.append(card);
  }
}
find.addEventListener('input', show); order.addEventListener('change', show);
"""
_SHOWN = {"\n": "⏎", "\t": "⇥"}


def write_page(path: str | Path, title: str, found: Survey, facts: Mapping[str, str], command: str = "") -> Path:
    """Write the page.

    Args:
        facts: name -> text, shown at the top, such as FVU and L0. command: that made the page.
    """
    cards = "".join(_card(feature) for feature in found.features)
    density = section("Density of features", _histogram(found))
    body = (
        f'<div class="top">{section("Autoencoder", pairs(facts))}{density}</div>'
        '<div class="tools"><input id="find" placeholder="Find text, or #number of a feature" '
        'aria-label="Find text or a feature"><select id="order" aria-label="Order">'
        '<option value="density">by density</option><option value="largest">by largest activation</option>'
        f'<option value="index">by number</option></select></div><div id="features">{cards}</div>'
    )
    lead = (
        f"{len(found.density)} features over {found.tokens} tokens; {len(found.features)} of them below, with the text "
        "that activates them most"
    )
    return write_document(path, title, body, lead=lead, style=_STYLE, script=_SCRIPT, command=command)


def _card(feature: Feature) -> str:
    texts = "".join(_text(example, feature.largest) for example in feature.examples)
    logits = ""
    if feature.promotes:
        logits = f'<span class="soft">raises {_tokens(feature.promotes)} lowers {_tokens(feature.demotes)}</span>'
    return (
        f'<section data-index="{feature.index}" data-density="{feature.density}" '
        f'data-largest="{feature.largest}"><div class="head"><h2>#{feature.index}</h2>'
        f'<span class="soft">on {feature.density:.2%} of tokens, up to {feature.largest:.3g}</span>{logits}'
        f"{_bars(feature.heights)}</div>{texts}</section>"
    )


def _tokens(names: Sequence[str]) -> str:
    return " ".join(f"<code>{escape(_visible(name))}</code>" for name in names)


def _visible(text: str) -> str:
    return "".join(_SHOWN.get(letter, letter) for letter in text).replace(" ", "␣") if text.strip() == "" else text


def _text(example: Example, largest: float) -> str:
    """One line of text; the deeper the colour, the larger the activation."""
    parts = []
    for place, (piece, value) in enumerate(zip(example.pieces, example.values, strict=True)):
        text = escape("".join(_SHOWN.get(letter, letter) for letter in piece))
        if value <= 0:
            parts.append(text)
            continue
        mark = ' class="peak"' if place == example.peak else ""
        shade = 0.12 + 0.68 * min(1.0, value / max(largest, 1e-9))
        parts.append(f'<b{mark} style="background:rgb(var(--hot)/{shade:.2f})" title="{value:.3g}">{text}</b>')
    return f'<div class="text">{"".join(parts)}</div>'


def _bars(heights: Sequence[int]) -> str:
    """Small histogram of a feature's activations; heights as square roots, so that rare large ones are seen."""
    top = max(max(heights), 1) ** 0.5
    bars = "".join(
        f'<rect x="{6 * i}" y="{28 - 28 * n**0.5 / top:.1f}" width="5" height="{28 * n**0.5 / top:.1f}"/>'
        for i, n in enumerate(heights)
    )
    return (
        f'<svg width="{6 * len(heights)}" height="28" role="img" aria-label="activations of the feature">{bars}</svg>'
    )


def _histogram(found: Survey) -> str:
    width, height, top = 640, 170, max(*found.counts, 1)
    step = width / len(found.counts)
    low, high = found.edges[0], found.edges[-1]
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * n / top:.1f}" width="{step - 2:.1f}" '
        f'height="{height * n / top:.1f}"><title>{n} features</title></rect>'
        for i, n in enumerate(found.counts)
    )
    ticks = "".join(
        f'<text x="{(power - low) / (high - low) * width:.1f}" y="{height + 16}" '
        f'text-anchor="{"start" if power == low else "end" if power == high else "middle"}">'
        f"{'never' if power == low else f'{100 * 10.0**power:g} %'}</text>"
        for power in range(round(low), round(high) + 1)
    )
    return (
        f'<svg viewBox="0 -14 {width} {height + 36}" width="100%" role="img" aria-label="histogram of densities">'
        f'<line x1="0" x2="{width}" y1="{height}" y2="{height}"/>{bars}{ticks}'
        f'<text x="0" y="-3">{top} features</text></svg>'
    )
