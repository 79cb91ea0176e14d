"""The table of a probe: every cut of every component at every ratio, and what each task's metric says."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import ConfigError, MissingExtra, unknown
from ...runs.document import section, table, write_document
from .calibration import Calibration
from .components import Component, check_disjoint
from .cuts import Cut, cut_depth, cut_heads, cut_width

Metric = Callable[[nn.Module], float]
CUTS: dict[str, Callable[[nn.Module, Component, Calibration, float], Cut]] = {
    "depth": lambda m, c, s, k: cut_depth(m, c, s, k, "block"),
    "depth: attention": lambda m, c, s, k: cut_depth(m, c, s, k, "attention"),
    "depth: mlp": lambda m, c, s, k: cut_depth(m, c, s, k, "mlp"),
    "width": cut_width,
    "heads": cut_heads,
}

# a colour for each component, a line for each cut
_COLOURS = ("#3b6fb6", "#c2553a", "#3f9a64", "#8a5fb0")
_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"linestyle": line, "marker": mark} for line, mark in (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"))
)


@dataclass(frozen=True)
class Sensitivity:
    """The uncut model's metrics, and one row per cut: {"component", "cut", "keep", "removed", metric: value, ...}."""

    whole: dict[str, float]
    rows: list[dict[str, Any]]

    def write_page(self, path: Path, title: str = "Sensitivity to cuts", lead: str = "", command: str = "") -> Path:
        """A self-contained page with a chart and the table.

        Args:
            lead: a line under the title. command: that made the page.
        Raises:
            MissingExtra: matplotlib.
        """
        body = section("", self._chart()) + section("", self._table())
        return write_document(path, title, body, lead=lead, command=command)

    def _table(self) -> str:
        names = list(self.whole)
        rows = [["whole", "", "", "0", *(f"{self.whole[n]:.4g}" for n in names)]]
        rows += [
            [r["component"], r["cut"], f"{r['keep']:.0%}", f"{r['removed']:,}", *(f"{r[n]:.4g}" for n in names)]
            for r in self.rows
        ]
        return table(("component", "cut", "keep", "parameters removed", *names), rows, left=(0, 1))

    def _chart(self) -> str:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtra("matplotlib", "report") from error
        names = list(self.whole)
        figure = Figure(figsize=(4.2 * len(names) + 1.6, 3.4), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        lines = dict.fromkeys((row["component"], row["cut"]) for row in self.rows)
        colours = dict(zip(dict.fromkeys(component for component, _ in lines), _COLOURS * len(lines), strict=False))
        styles = dict(zip(dict.fromkeys(cut for _, cut in lines), _STYLES, strict=False))
        for axis, name in zip(axes, names, strict=True):
            for component, cut in lines:
                points = [(r["keep"], r[name]) for r in self.rows if (r["component"], r["cut"]) == (component, cut)]
                points = sorted([*points, (1.0, self.whole[name])])
                style = {"color": colours[component], **styles[cut]}
                axis.plot(*zip(*points, strict=True), label=f"{component}, {cut}", markersize=5, **style)
            axis.set_title(name)
            axis.set_xlabel("kept")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axis.set_xticks(sorted({1.0, *(row["keep"] for row in self.rows)}))
            axis.invert_xaxis()
            axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside right upper")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        return out.getvalue()[out.getvalue().index("<svg") :]


def sensitivity(
    model: nn.Module,
    components: Sequence[Component],
    calibrations: Mapping[str, Calibration],
    metrics: Mapping[str, Metric],
    *,
    cuts: Sequence[str] = ("depth", "width"),
    keep: Sequence[float] = (0.75, 0.5, 0.25),
    say: Callable[[str], None] = lambda line: None,
) -> Sensitivity:
    """Try every cut, measure, take it back: the model is the same afterwards, bit for bit.

    Args:
        calibrations: component name -> its calibration. metrics: name -> callable(model) -> number.
    Raises:
        ConfigError: an unknown cut, or a module in two components.
    """
    check_disjoint(model, tuple(components))
    for cut in cuts:
        if cut not in CUTS:
            raise unknown("cut", cut, CUTS)
    if not metrics:
        raise ConfigError("a probe needs at least one metric")
    whole = {name: float(metric(model)) for name, metric in metrics.items()}
    rows = []
    for component in components:
        for cut in cuts:
            for ratio in keep:
                done = CUTS[cut](model, component, calibrations[component.name], ratio)
                values = {name: float(metric(model)) for name, metric in metrics.items()}
                rows.append({"component": component.name, "cut": cut, "keep": ratio, "removed": done.removed} | values)
                say(f"{done.what}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
                done.undo()
    return Sensitivity(whole, rows)
