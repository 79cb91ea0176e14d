"""Allocation: how many entries each layer keeps. Counts are exact: they sum to round(density * total)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ConfigError, MaskError, unknown
from ..kernels.topk import topk_mask

Shapes = Mapping[str, tuple[int, ...]]


@runtime_checkable
class Allocation(Protocol):
    """Shares a global density out over layers."""

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Real-valued density of each layer; sum of density times size equals the global budget."""


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def check_density(density: float) -> None:
    """Raise ConfigError unless 0 < density <= 1."""
    if not 0.0 < density <= 1.0:
        raise ConfigError(f"density must lie in (0, 1], got {density} (sparsity = 1 - density lies in [0, 1))")


@dataclass(frozen=True)
class Uniform:
    """The same density everywhere."""

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        return dict.fromkeys(shapes, density)


@dataclass(frozen=True)
class UniformPlus:
    """First layer dense, last layer at least `last` dense, the others share the rest equally (Gale et al. 2019)."""

    last: float = 0.2

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        names = list(shapes)
        if len(names) < 2 or density >= 1.0:
            return dict.fromkeys(names, density)
        sizes = {name: _numel(shape) for name, shape in shapes.items()}
        fixed = {names[0]: 1.0, names[-1]: max(density, self.last)}
        rest = [name for name in names if name not in fixed]
        budget = density * sum(sizes.values()) - sum(fixed[name] * sizes[name] for name in fixed)
        room = sum(sizes[name] for name in rest)
        if budget <= 0 or budget > room:
            raise ConfigError(
                f"uniform_plus is infeasible at density {density}: first and last layer alone take "
                f"{sum(fixed[n] * sizes[n] for n in fixed):.0f} of {density * sum(sizes.values()):.0f} weights; "
                f"raise the density or use 'erk'"
            )
        return {name: fixed.get(name, budget / room) for name in names}


@dataclass(frozen=True)
class ERK:
    """Density proportional to (out + in + kh + kw) / (out in kh kw), layers that exceed 1 become dense
    (Evci et al. 2020, appendix; Mocanu et al. 2018 for the kernel-free form).

    Args:
        power: exponent of that ratio (default 1).
        kernel: whether kernel dimensions enter (ER without).
        last_dense: the last layer stays dense and its cost comes off the budget (ERK+).
    """

    power: float = 1.0
    kernel: bool = True
    last_dense: bool = False

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ConfigError(f"ERK power must not be negative, got {self.power}")

    def raw(self, shape: tuple[int, ...]) -> float:
        """The unscaled probability of a layer.

        >>> round(ERK().raw((32, 16, 3, 3)), 7)
        0.0117188
        """
        dims = shape if self.kernel else shape[:2]
        return (sum(dims) / math.prod(dims)) ** self.power

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        if density >= 1.0:
            return dict.fromkeys(shapes, 1.0)
        sizes = {name: _numel(shape) for name, shape in shapes.items()}
        raw = {name: self.raw(shape) for name, shape in shapes.items()}
        dense = {list(shapes)[-1]} if self.last_dense and len(shapes) > 1 else set()
        total = density * sum(sizes.values())
        while True:
            budget = total - sum(sizes[name] for name in dense)
            if budget <= 0:
                raise ConfigError(
                    f"ERK is infeasible at density {density}: dense layers {sorted(dense)} exceed the budget"
                )
            free = [name for name in shapes if name not in dense]
            if not free:
                return dict.fromkeys(shapes, 1.0)
            eps = budget / sum(raw[name] * sizes[name] for name in free)
            top = max(raw[name] for name in free)
            if eps * top <= 1.0:
                return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}
            dense |= {name for name in free if raw[name] == top}


@dataclass(frozen=True)
class ER(ERK):
    """Erdos-Renyi: (out + in) / (out in), kernels ignored (Mocanu et al. 2018, eq. 3)."""

    kernel: bool = False


@dataclass(frozen=True)
class Given:
    """Explicit densities: rows of (layer name, density). The global density is then only checked."""

    table: tuple[tuple[str, float], ...]

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        given = dict(self.table)
        for name in given:
            if name not in shapes:
                raise unknown("layer", name, shapes)
        for name in shapes:
            if name not in given:
                raise ConfigError(f"no density is given for {name}")
        return given


@dataclass(frozen=True)
class FlopsBudget:
    """One density for layers weighted by cost, so that `density` is the kept share of FLOPs, not of weights.

    Args:
        flops: rows of (layer name, dense FLOPs), for instance from accounting.flops.
        power: layers get density proportional to (weights / FLOPs)^power, clamped to 1; 0 is uniform.
    """

    flops: tuple[tuple[str, float], ...]
    power: float = 0.5

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        cost = dict(self.flops)
        raw = {name: (_numel(shape) / cost[name]) ** self.power for name, shape in shapes.items()}
        budget = density * sum(cost[name] for name in shapes)
        low, high = 0.0, 1.0 / min(raw.values())
        for _ in range(100):  # bisection: cost is monotone in the factor
            middle = (low + high) / 2
            spent = sum(min(1.0, middle * raw[name]) * cost[name] for name in shapes)
            low, high = (middle, high) if spent < budget else (low, middle)
        return {name: min(1.0, high * raw[name]) for name in shapes}


@dataclass(frozen=True)
class Global:
    """Rank the scores of all layers together. With `allow_empty` a layer may lose everything."""

    allow_empty: bool = False

    def densities(self, shapes: Shapes, density: float) -> dict[str, float]:
        return dict.fromkeys(shapes, density)


def _round(x: float) -> int:
    """Nearest integer, halves up."""
    return math.floor(x + 0.5)


def budget(density: float, total: int) -> int:
    """round(density * total), halves up: the one rule by which densities become counts."""
    return _round(density * total)


def share(total: int, wanted: Mapping[str, float], caps: Mapping[str, int], floor: int = 1) -> dict[str, int]:
    """Integers near `wanted` that sum to `total`, each between `floor` and its cap: largest remainders first.

    Raises:
        MaskError: no such integers exist.
    """
    low = {name: min(floor, caps[name]) for name in wanted}
    if not sum(low.values()) <= total <= sum(caps[name] for name in wanted):
        raise MaskError(
            f"cannot keep {total} entries over {len(wanted)} layers of {sum(caps[n] for n in wanted)} entries "
            f"with at least {floor} each: a layer would be emptied; raise the density or allow empty layers"
        )
    counts = {name: min(caps[name], max(low[name], math.floor(x + 1e-9))) for name, x in wanted.items()}
    names = list(wanted)
    while (gap := total - sum(counts.values())) != 0:
        sign = 1 if gap > 0 else -1
        room = [n for n in names if (counts[n] < caps[n] if sign > 0 else counts[n] > low[n])]
        room.sort(key=lambda n: -sign * (wanted[n] - counts[n]))
        step = max(1, abs(gap) // len(names))  # far-off wishes converge in a few rounds
        for name in room[: max(1, abs(gap) // step)]:
            space = caps[name] - counts[name] if sign > 0 else counts[name] - low[name]
            counts[name] += sign * min(step, space)
    return counts


def keep_counts(
    allocation: Allocation, shapes: Shapes, cells: Mapping[str, int], density: float, *, floor: int = 1
) -> dict[str, int]:
    """Entries each layer keeps: multiples of its cell, summing to round(density * total) in units of the cell.

    Args:
        shapes: layer name -> shape. cells: layer name -> entries per cell (1 if unstructured).
        floor: fewest cells a layer may keep.
    Raises:
        ConfigError: density outside (0, 1] or infeasible. MaskError: a layer would be emptied.
    """
    check_density(density)
    parts = allocation.densities(shapes, density)
    caps = {name: _numel(shapes[name]) // cells[name] for name in shapes}
    wanted = {name: parts[name] * caps[name] for name in shapes}
    if isinstance(allocation, Given):
        return {name: max(floor, _round(wanted[name])) * cells[name] for name in shapes}
    sizes = set(cells.values())
    if len(sizes) == 1:
        size = sizes.pop()
        total = budget(density, sum(_numel(s) for s in shapes.values()) // size)
        return {name: count * size for name, count in share(total, wanted, caps, floor).items()}
    return {name: max(floor, min(caps[name], _round(wanted[name]))) * cells[name] for name in shapes}


def global_counts(
    cell_scores: Mapping[str, Tensor], cells: Mapping[str, int], total: int, allow_empty: bool = False
) -> dict[str, int]:
    """Entries each layer keeps when `total` entries are ranked together by score; ties go to earlier layers.

    With cells of unequal size the largest prefix of the ranking that fits into `total` is kept.
    """
    names = list(cell_scores)
    flat = torch.cat([cell_scores[name].reshape(-1) for name in names])
    sizes = {cells[name] for name in names}
    if len(sizes) == 1:
        kept = topk_mask(flat, min(flat.numel(), total // sizes.pop()))
    else:
        weight = torch.cat([torch.full((cell_scores[n].numel(),), cells[n], device=flat.device) for n in names])
        order = torch.argsort(flat, descending=True, stable=True)
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[order[weight[order].cumsum(0) <= total]] = True
    parts = kept.split([cell_scores[name].numel() for name in names])
    counts = {name: int(part.sum()) * cells[name] for name, part in zip(names, parts, strict=True)}
    for name, count in counts.items():
        if count == 0 and not allow_empty:
            raise MaskError(
                f"{name} would be emptied by a global ranking that keeps {total} entries; "
                f"keep more, exclude it, or allow empty layers (global: {{allow_empty: true}})"
            )
    return counts
