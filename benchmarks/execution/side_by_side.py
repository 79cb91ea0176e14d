"""What the benchmarks share beside gossamer.claims.dense_peers: pruning, best times, summaries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.claims.dense_peers import Run, slices

SLICES = 12


def prune(weight: Tensor, sparsity: int, block: int) -> Tensor:
    """Random blocks of rows x 1 zeroed, exactly to the sparsity in percent (rounded to a block)."""
    strips, columns = weight.shape[0] // block, weight.shape[1]
    cells = torch.zeros(strips * columns, dtype=torch.bool)
    kept = round(strips * columns * (1 - sparsity / 100))
    cells[torch.randperm(len(cells))[:kept]] = True
    return weight * cells.view(strips, columns).repeat_interleave(block, 0)


def seconds(runs: dict[str, Run], threads: int = 1) -> dict[str, float]:
    """Best seconds of a call, in turns."""
    return {name: min(times) for name, times in slices(runs, SLICES, threads).items()}


def summary(results: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Geometric mean, best and worst of each column that every row has."""

    def mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    reduced = {"geometric mean": mean, "best": max, "worst": min}
    names = [name for name in results[0] if all(name in row for row in results)]
    return {label: {name: f([r[name] for r in results]) for name in names} for label, f in reduced.items()}


def cells(row: dict[str, float], columns: list[str], mark: str = "") -> str:
    """A row of a Markdown table; a dash where there is no figure."""
    return " | ".join(f"{mark}{row[name]:.2f}{mark}" if name in row else "–" for name in columns)
