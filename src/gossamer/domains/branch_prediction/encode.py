"""From sparse models to a side table of so many bits: choose terms, round weights, spend the budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ...errors import ConfigError
from .features import columns, occurrences
from .fit import Linear, greedy_path, refit
from .identify import Finding, Samples, SparseReport, samples
from .side import Entry, Layout, SideTable
from .simulate import Result, simulate

SCALES = 24  # scales that are tried for the rounding of a model
Weighed = tuple[Finding, Entry, float]  # with the misses of the profile that the entry would spare


@dataclass(frozen=True)
class Encoded:
    """A side table, the findings behind its entries in the same order, and what was left out, with the reason."""

    side: SideTable
    findings: tuple[Finding, ...]
    dropped: tuple[tuple[int, str], ...]


def encode(report: SparseReport, budget_bytes: float = 2048, layout: Layout | None = None) -> Encoded:
    """Put the sparse models of a report in a table that fits the budget.

    A model with more than `max_terms` weights keeps the largest ones, refitted, or gives way to one that was selected
    forward, whichever predicts better. It is rounded with the scale that predicts its training data best, and left out
    where that costs its gain on validation. Models that spare more misses per bit come first.

    Args:
        budget_bytes: storage for entries, their own outcomes, and the history register.
    Raises:
        ConfigError: not even one entry fits the budget; a layout for another window than the report's.
    """
    layout = layout or Layout(window=report.search.window)
    if layout.window != report.search.window:
        raise ConfigError(f"layout is for {layout.window}, the models for {report.search.window}")
    budget = int(8 * budget_bytes) - layout.window.history
    smallest = layout.fixed_bits + layout.position_bits + layout.weight_bits
    if budget < smallest:
        raise ConfigError(
            f"{budget_bytes} bytes cannot hold one entry: the history register takes {layout.window.history} bits, the "
            f"smallest entry {smallest}; needs at least {-(-(layout.window.history + smallest) // 8)} bytes"
        )
    profile = simulate(report.trace.first(report.profile), report.base)
    dropped: list[tuple[int, str]] = []
    weighed = []
    for finding in report.sparse:
        found = _weigh(profile, finding, report, layout)
        if isinstance(found, str):
            dropped.append((finding.pc, found))
        else:
            weighed.append(found)
    weighed.sort(key=lambda row: -row[2] / layout.entry_bits(row[1].positions))
    kept = _spend(weighed, budget, layout, dropped)
    return Encoded(SideTable(layout, tuple(e for _, e, _ in kept)), tuple(f for f, _, _ in kept), tuple(dropped))


def _spend(weighed: list[Weighed], budget: int, layout: Layout, dropped: list[tuple[int, str]]) -> list[Weighed]:
    kept: list[Weighed] = []
    for finding, entry, saved in weighed:
        bits = layout.entry_bits(entry.positions)
        if any(entry.tag == other.tag for _, other, _ in kept):
            dropped.append((finding.pc, "its tag is taken"))
        elif bits > budget:
            dropped.append((finding.pc, f"its {bits} bits do not fit the {budget} that are left"))
        else:
            kept.append((finding, entry, saved))
            budget -= bits
    return kept


def _weigh(profile: Result, finding: Finding, report: SparseReport, layout: Layout) -> Weighed | str:
    """The entry of a finding with the misses that it spares in the profile, or why there is none."""
    assert finding.model is not None
    data = samples(profile, finding.pc, report.search)
    short = [shorten(finding.model, layout.max_terms, data)]
    if len(finding.model.support) > layout.max_terms:
        short += greedy_path(data.x, data.y, layout.max_terms)[-1:]
    rounded = max((quantise(model, layout, data) for model in short), key=lambda m: _accuracy(m, data))
    gain = _accuracy(rounded, data) - float(data.base_right.mean())
    if gain <= 0:
        return f"rounded to {layout.weight_bits} bits it gains {gain:+.4f}"
    tag = int(layout.tag(np.array([finding.pc], np.uint64))[0])
    support = rounded.support
    weights = tuple(int(w) for w in rounded.weights[list(support)].tolist())
    return finding, Entry(tag, int(rounded.bias), support, weights), gain * finding.executed


def _accuracy(model: Linear, data: Samples) -> float:
    return float(((model.score(data.val_x) >= 0) == (data.val_y > 0)).double().mean())


def shorten(model: Linear, max_terms: int, data: Samples) -> Linear:
    """The model on its largest weights alone (ties to the lower index), refitted where some had to go."""
    support = sorted(model.support, key=lambda k: (-abs(float(model.weights[k])), k))[:max_terms]
    return model if len(support) == len(model.support) else refit(data.x, data.y, tuple(sorted(support)))


def quantise(model: Linear, layout: Layout, data: Samples) -> Linear:
    """Weights and bias as whole numbers of the layout's widths; one scale per model, which prediction does not need.

    Of several scales, the one that predicts the training data best; the finest wins ties.
    """
    largest, most = (1 << (layout.weight_bits - 1)) - 1, (1 << (layout.bias_bits - 1)) - 1
    top = float(model.weights.abs().max()) if model.support else max(abs(model.bias), 1e-12)
    best, score = model, -1.0
    for step in range(SCALES):
        unit = top / largest * (1 + step / SCALES) * (0.5 if step % 2 else 1)
        weights = (model.weights / unit).round().clamp(-largest, largest)
        bias = float(min(max(round(model.bias / unit), -most), most))
        tried = replace(model, weights=weights, bias=bias)
        found = float(((tried.score(data.x) >= 0) == (data.y > 0)).float().mean())
        if found > score:
            best, score = tried, found
    return best


def play_float(report: SparseReport, base: Result) -> Result:
    """The hybrid with the models as they were fitted: neither rounded, shortened, nor counted for usefulness.

    Args:
        base: the baseline's run over the whole trace.
    """
    guess = base.guess.copy()
    for finding in report.sparse:
        assert finding.model is not None
        at = occurrences(report.trace, finding.pc)
        support = finding.model.support
        x = torch.from_numpy(columns(report.trace, at, support, report.search.window)).double()
        guess[at] = (x @ finding.model.weights[list(support)].double() + finding.model.bias >= 0).numpy()
    return Result(f"{base.predictor} + {len(report.sparse)} float", base.bits, report.trace, guess, base.start)


def reaches(table: SideTable) -> int:
    """The longest reach of any entry into the global history, in branches."""
    history = table.layout.window.history
    return max((p + 1 for entry in table.entries for p in entry.positions if p < history), default=0)
