"""The transfer report as one self-contained page: a picture, a table and the rows as JSON."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

from ...errors import MissingExtra
from ...runs.document import section, table, write_document
from .transfer import Row

Key = tuple[str, str, int | None, str]


def grouped(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """(target, way, shots, model) -> rows of its seeds, in order of appearance."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row.target, row.way, row.shots, row.model), []).append(row)
    return found


def write_page(path: Path, rows: Sequence[Row], title: str = "Transfer of sparse models") -> Path:
    """Write the page. Raises MissingExtra without matplotlib."""
    lead = (
        "Prompt: the frozen network behind a learned border of pixels and a map of its labels. Probe: a new linear "
        "head. The two see pictures of different sizes, so compare models within a way."
    )
    head = ("target", "way", "shots per class", "model", "upstream", "accuracy", "ECE", "NLL")
    body = section("", _chart(rows)) + section("", table(head, list(_cells(rows)), left=range(4)))
    return write_document(path, title, body, lead=lead, record=[row.as_json() for row in rows])


def _cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for (target, way, shots, model), found in grouped(rows).items():
        upstream = "–" if found[0].upstream is None else f"{100 * found[0].upstream:.1f} %"
        scores = [100 * row.accuracy for row in found]
        spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
        yield (
            target,
            way,
            str(shots or "all"),
            model,
            upstream,
            f"{mean(scores):.1f}{spread} %",
            f"{100 * mean(row.ece for row in found):.1f} %",
            f"{mean(row.nll for row in found):.3f}",
        )


def _chart(rows: Sequence[Row]) -> str:
    """Accuracy above calibration error, one column per way, models beside each other at every number of shots."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    ways = list(dict.fromkeys(row.way for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    shots = list(dict.fromkeys(row.shots for row in rows))
    figure = Figure(figsize=(4.4 * len(ways), 5.2), layout="constrained")
    axes = figure.subplots(2, len(ways), squeeze=False, sharey="row", sharex=True)
    width = 0.8 / len(models)
    for column, way in enumerate(ways):
        for line, field in enumerate(("accuracy", "ece")):
            axis = axes[line][column]
            for index, model in enumerate(models):
                values = [
                    [100 * getattr(r, field) for r in rows if (r.way, r.model, r.shots) == (way, model, s)]
                    for s in shots
                ]
                places = [place + (index - (len(models) - 1) / 2) * width for place in range(len(shots))]
                heights = [mean(v) if v else 0.0 for v in values]
                errors = [stdev(v) if len(v) > 1 else 0.0 for v in values]
                axis.bar(places, heights, width * 0.92, yerr=errors, label=model, error_kw={"lw": 1, "ecolor": "#555"})
            axis.set_xticks(range(len(shots)), [str(s or "all") for s in shots])
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(way)
        axes[1][column].set_xlabel("samples per class")
    axes[0][0].set_ylabel("accuracy, %")
    axes[1][0].set_ylabel("calibration error, %")
    axes[0][0].legend(frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
