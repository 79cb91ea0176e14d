"""Draws what layers.py and fully_connected.py wrote: speed-up over sparsity.

    python benchmarks/execution/plot.py benchmarks/results/layers.md benchmarks/results/layers.png

For the layers each point is the geometric mean over shapes with 128 or more inputs; for fully connected layers there is
a panel for each shape. Needs the extra `report`.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

Table = dict[str, list[float]]  # name of a column -> speed-ups
DENSE = ("torch bf16", "torch int8", "openvino bf16")


def sections(text: str) -> list[tuple[str, Table, list[str]]]:
    """Title, columns and row labels of every table under a heading."""
    found = []
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        title, *lines = part.splitlines()
        rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        head, body = rows[0], rows[2:]
        columns = {name: [_number(row[i]) for row in body] for i, name in enumerate(head) if i >= 2}
        found.append((title, columns, [row[0] for row in body]))
    return found


def _number(cell: str) -> float:
    return math.nan if cell == "–" else float(cell)


def panels(text: str) -> dict[str, tuple[list[float], Table]]:
    """Title of a panel -> sparsities and speed-ups."""
    parts = sections(text)
    if not parts[0][0].endswith("zero"):
        result = {}
        for title, columns, labels in parts:
            kept = [i for i, label in enumerate(labels) if label.endswith("%")]
            xs = [float(labels[i].split()[0]) for i in kept]
            result[title] = (xs, {name: [values[i] for i in kept] for name, values in columns.items()})
        return result
    xs = [float(title.split()[0]) for title, _, _ in parts]
    mean = next(i for i, label in enumerate(parts[0][2]) if label.startswith("geometric mean"))
    means = {name: [columns[name][mean] for _, columns, _ in parts] for name in parts[0][1]}
    return {"1x1 convolutions, geometric mean": (xs, means)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn = panels(options.table.read_text().split("\n## ")[0])
    size = (1.5 + 4 * len(drawn), 4.6)
    figure, axes = pyplot.subplots(1, len(drawn), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, (xs, columns)) in zip(axes[0], drawn.items(), strict=True):
        for i, (name, values) in enumerate(columns.items()):
            style = ":" if name in DENSE else "--" if name in ("scipy csr", "torch csr") else "-"
            axis.plot(xs, values, style, color=pyplot.colormaps["tab20"](i % 20), marker=".", label=name)
        axis.axhline(1, color="0.6", linewidth=0.8)
        axis.set(title=title, xlabel="weights that are zero, %", yscale="log", xticks=xs)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "235" else "")
    axes[0][0].set_ylabel("speed over the best dense fp32 peer")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
