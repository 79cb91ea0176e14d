"""Updates: how masks change. An update is a value; `apply` reads a Context and returns new masks.

Counts are exact: after `set_to` and `prune_to` the number of survivors is round(density * total); `prune_grow` keeps
every layer's number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.topk import topk_mask
from ..maths.schedules import Constant, Every, Schedule
from .allocation import (
    Allocation,
    Given,
    Global,
    Uniform,
    budget,
    check_density,
    global_counts,
    keep_counts,
    share,
)
from .context import Context
from .patterns import Pattern
from .scores import Gradient, Magnitude, Random, Score

Masks = dict[str, Tensor]


@dataclass
class Change:
    """What an update did: the new masks and, for growth, which entries lived through it (the rest restart at 0)."""

    masks: Masks
    survivors: Masks


@runtime_checkable
class Update(Protocol):
    """A change of masks that is due at the steps of `when` (None: once, before training)."""

    @property
    def when(self) -> Every | None: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def apply(self, ctx: Context) -> Change: ...


def _free(ctx: Context) -> dict[str, tuple[int, ...]]:
    """Shapes of the groups whose pattern leaves the count free."""
    return {g.name: g.shape for g in ctx.groups if ctx.patterns[g.name].fixed(g.shape) is None}


def project(ctx: Context, scores: Mapping[str, Tensor], density: float, allocation: Allocation) -> Masks:
    """Masks of global density `density`; groups of a fixed pattern (N:M) take the count that it implies."""
    check_density(density)
    masks = {
        g.name: ctx.patterns[g.name].project(scores[g.name])
        for g in ctx.groups
        if ctx.patterns[g.name].fixed(g.shape) is not None
    }
    shapes = _free(ctx)
    if not shapes:
        return masks
    cells = {name: ctx.patterns[name].cell(shape) for name, shape in shapes.items()}
    if isinstance(allocation, Global):
        total = budget(density, sum(torch.Size(s).numel() for s in shapes.values()) // _common(cells))
        cell_scores = {name: ctx.patterns[name].cells(scores[name]) for name in shapes}
        counts = global_counts(cell_scores, cells, total * _common(cells), allocation.allow_empty)
    else:
        counts = keep_counts(allocation, shapes, cells, density)
    masks |= {name: ctx.patterns[name].project(scores[name], counts[name]) for name in shapes}
    return {g.name: masks[g.name] for g in ctx.groups}


def _common(cells: Mapping[str, int]) -> int:
    """The cell size if all agree, else 1: the unit in which a global budget is rounded."""
    sizes = set(cells.values())
    return sizes.pop() if len(sizes) == 1 else 1


def restrict(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with -inf outside the masks, so that what is inactive is never preferred to what is active."""
    return {name: s.masked_fill(~masks[name], -math.inf) for name, s in scores.items()}


@dataclass(frozen=True)
class SetTo:
    """Masks from scratch, by score.

    Args:
        score: what to keep.
        density: global density; a schedule is read at the run's time. Groups with an N:M pattern ignore it.
        allocation: how the density is shared out.
        ratios: take only the per-layer counts of a global ranking by this score, not its positions.
        rounds: repeat with densities d^(1/rounds), d^(2/rounds), ... d, scoring the masked network anew (SynFlow).
        when: None: once, before training.
    """

    score: Score = field(default_factory=Magnitude)
    density: float | Schedule = 1.0
    allocation: Allocation = field(default_factory=Global)
    ratios: Score | None = None
    rounds: int = 1
    when: Every | None = None

    @property
    def needs(self) -> frozenset[str]:
        return self.score.needs | (self.ratios.needs if self.ratios else frozenset())

    def apply(self, ctx: Context) -> Change:
        final = self.density if isinstance(self.density, (int, float)) else self.density(ctx.time)
        allocation = self.allocation if self.ratios is None else _ratios(ctx, self.ratios, final)
        before = ctx.masks
        masks = before
        for k in range(1, self.rounds + 1):
            scores = ctx.finite(self.score(ctx), "the score")
            if k > 1:
                scores = restrict(scores, masks)
            masks = project(ctx, scores, final ** (k / self.rounds), allocation)
            ctx.masks = masks
        ctx.masks = before
        return Change(masks, masks)


def _ratios(ctx: Context, score: Score, density: float) -> Given:
    """The layer densities that a global ranking by `score` gives."""
    masks = project(ctx, ctx.finite(score(ctx), "the score"), density, Global())
    return Given(tuple((name, int(mask.sum()) / mask.numel()) for name, mask in masks.items()))


@dataclass(frozen=True)
class PruneTo:
    """Drop the lowest scores until a scheduled density is reached; nothing comes back.

    Args:
        density: schedule over the update window: read at 0 where the window starts, at 1 at its last update.
        score: what to keep (magnitude in GMP and GraNet).
        allocation: `global` ranks all layers together, `uniform` prunes each to the same density.
    Source: Zhu & Gupta 2017; Liu et al. 2021 (GraNet), Algorithm 1.
    """

    density: Schedule
    score: Score = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Global)
    when: Every = field(default_factory=Every)

    @property
    def needs(self) -> frozenset[str]:
        return self.score.needs

    def __post_init__(self) -> None:
        first, last = self.density(0.0), self.density(1.0)
        check_density(first)
        check_density(last)
        if last > first:
            raise ConfigError(f"final sparsity must not be below initial: density goes from {first:g} up to {last:g}")

    def apply(self, ctx: Context) -> Change:
        density = self.density(self.when.progress(ctx.step, ctx.steps))
        scores = ctx.finite(self.score(ctx), "the score")
        if ctx.within:
            scores = restrict(scores, ctx.masks)
        masks = project(ctx, scores, density, self.allocation)
        if ctx.within:  # a layer already below its share keeps what it has
            masks = {name: mask & ctx.masks[name] for name, mask in masks.items()}
        return Change(masks, masks)


@dataclass(frozen=True)
class PruneGrow:
    """Drop a fraction of each layer's survivors and grow as many elsewhere: every layer keeps its count.

    Args:
        rate: fraction dropped, a schedule of the run's time.
        prune, grow: scores of what to keep and of what to grow.
        allow_reverse: what was just dropped may be grown again at once (GraNet, RigL); it then keeps its value, as in
            the authors' code, where only connections that were off before the update are new.
        rounding: "floor" (RigL) or "ceil" (GraNet) of rate * survivors.
        redistribute: "none": each layer regrows its own number; "momentum" / "nonzeros": the total is shared out
            by mean |grad_ema| of the survivors (Dettmers & Zettlemoyer 2019) or by their number.
        init: grown weights start at "zero", "random" (Kaiming normal) or "grad_step" (-lr * gradient).
    Source: Mocanu et al. 2018 (SET); Evci et al. 2020 (RigL), Algorithm 1; Liu et al. 2021 (GraNet).
    """

    rate: Schedule = field(default_factory=lambda: Constant(0.3))
    prune: Score = field(default_factory=Magnitude)
    grow: Score = field(default_factory=Random)
    when: Every = field(default_factory=Every)
    allow_reverse: bool = True
    rounding: str = "floor"
    redistribute: str = "none"
    init: str = "zero"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("rounding", self.rounding, ("floor", "ceil")),
            ("redistribute", self.redistribute, ("none", "momentum", "nonzeros")),
            ("init", self.init, ("zero", "random", "grad_step")),
        ):
            if value not in allowed:
                raise ConfigError(f"prune_grow: {name} must be one of {allowed}, got {value!r}")

    @property
    def needs(self) -> frozenset[str]:
        extra = {"momentum": {"grad_ema"}}.get(self.redistribute, set())
        return self.prune.needs | self.grow.needs | extra | ({"grad"} if self.init == "grad_step" else set())

    def _drops(self, active: int, zeros: int, time: float) -> int:
        count = self.rate(time) * active
        number = math.ceil(count - 1e-9) if self.rounding == "ceil" else math.floor(count + 1e-9)
        return min(number, active) if self.allow_reverse else min(number, active, zeros)

    def apply(self, ctx: Context) -> Change:
        keep_scores = ctx.finite(self.prune(ctx), "the prune score")
        grow_scores = ctx.finite(self.grow(ctx), "the grow score")
        survivors: Masks = {}
        drops: dict[str, int] = {}
        for group in ctx.groups:
            pattern, old = ctx.patterns[group.name], ctx.masks[group.name]
            if pattern.fixed(group.shape) is not None:
                raise ConfigError(f"prune_grow cannot move the fixed counts of {pattern} in {group.name}")
            active = _kept_cells(pattern, old)
            count = int(active.count_nonzero())
            drops[group.name] = self._drops(count, active.numel() - count, ctx.time)
            scores = torch.where(active, pattern.cells(keep_scores[group.name]), -math.inf)
            kept = topk_mask(scores, count - drops[group.name])
            survivors[group.name] = pattern.expand(kept, group.shape)
        grows = self._grows(ctx, survivors, drops)
        masks: Masks = {}
        for group in ctx.groups:
            pattern = ctx.patterns[group.name]
            taken = _kept_cells(pattern, survivors[group.name])
            closed = taken if self.allow_reverse else _kept_cells(pattern, ctx.masks[group.name])
            scores = torch.where(closed, -math.inf, pattern.cells(grow_scores[group.name]))
            grown = topk_mask(scores, grows[group.name])
            masks[group.name] = pattern.expand(taken | grown, group.shape)
            survivors[group.name] = masks[group.name] & ctx.masks[group.name]
        return Change(masks, survivors)

    def _grows(self, ctx: Context, survivors: Masks, drops: dict[str, int]) -> dict[str, int]:
        """Cells each layer grows."""
        if self.redistribute == "none":
            return drops
        room, weight = {}, {}
        for group in ctx.groups:
            blocked = survivors[group.name] if self.allow_reverse else ctx.masks[group.name]
            room[group.name] = int((~blocked).sum()) // ctx.patterns[group.name].cell(group.shape)
            weight[group.name] = self._weight(ctx, group.name, survivors[group.name])
        total, mass = sum(drops.values()), sum(weight.values())
        wanted = {name: total * w / mass if mass > 0 else float(drops[name]) for name, w in weight.items()}
        return share(total, wanted, room, floor=0)

    def _weight(self, ctx: Context, name: str, kept: Tensor) -> float:
        if self.redistribute == "nonzeros":
            return float(kept.sum())
        group = next(g for g in ctx.groups if g.name == name)
        means = group.reduce(lambda p: ctx.statistic("grad_ema", p).abs())
        return float(means[kept].mean()) if bool(kept.any()) else 0.0


def _kept_cells(pattern: Pattern, mask: Tensor) -> Tensor:
    """Which cells of a legal mask are on, flat."""
    single = pattern.cell(tuple(mask.shape)) == 1
    return mask.reshape(-1) if single else pattern.cells(mask.float()) > 0.5


@dataclass(frozen=True)
class GrowTo:
    """Grow by score until a scheduled density is reached; nothing is dropped. The window is that of `prune_to`."""

    density: Schedule
    score: Score = field(default_factory=Gradient)
    allocation: Allocation = field(default_factory=Uniform)
    when: Every = field(default_factory=Every)

    @property
    def needs(self) -> frozenset[str]:
        return self.score.needs

    def apply(self, ctx: Context) -> Change:
        density = self.density(self.when.progress(ctx.step, ctx.steps))
        scores = ctx.finite(self.score(ctx), "the grow score")
        forced = {name: s.masked_fill(ctx.masks[name], math.inf) for name, s in scores.items()}
        masks = project(ctx, forced, density, self.allocation)
        return Change({name: m | ctx.masks[name] for name, m in masks.items()}, dict(ctx.masks))


@dataclass(frozen=True)
class Freeze:
    """The mask is what is not zero: training goes on with a model that is sparse already."""

    when: Every | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def apply(self, ctx: Context) -> Change:
        active = ctx.units(lambda name: (ctx.weights[name] != 0).double())
        masks = {name: values > 0 for name, values in active.items()}
        return Change(masks, masks)
