"""Batteries for the parts of the algebra. Each raises AssertionError naming what does not hold."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import GossamerError, MaskError, NumericsError
from ..maths.schedules import Every, Schedule
from ..sparsify.allocation import Allocation, Global, budget, global_counts, keep_counts
from ..sparsify.context import Context
from ..sparsify.groups import select
from ..sparsify.patterns import Pattern, Unstructured
from ..sparsify.scores import Score
from ..sparsify.statistics import Statistics
from ..sparsify.updates import Update

SHAPES = ((8, 8), (16, 12), (4, 8, 1, 1), (8, 8, 3, 3), (12, 24))


def expect(condition: bool, text: str) -> None:
    """AssertionError with `text` unless `condition`."""
    if not condition:
        raise AssertionError(text)


def check_pattern(pattern: Pattern, shapes: Iterable[tuple[int, ...]] = SHAPES) -> None:
    """Exact counts, ties by index, legality, determinism under memory layout, NaN refused."""
    used = 0
    for shape in shapes:
        try:
            cell, fixed = pattern.cell(shape), pattern.fixed(shape)
        except GossamerError:
            continue  # the pattern says that it does not divide this shape
        used += 1
        numel = torch.Size(shape).numel()
        keeps = [fixed] if fixed is not None else [c * cell for c in (0, 1, numel // cell // 2, numel // cell)]
        random = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        for scores in (random, torch.zeros(shape), torch.ones(shape)):
            for keep in keeps:
                mask = pattern.project(scores, keep)
                expect(mask.dtype == torch.bool and mask.shape == scores.shape, f"{pattern}: mask of wrong type")
                expect(int(mask.sum()) == keep, f"{pattern}: {int(mask.sum())} survivors of {shape}, asked {keep}")
                pattern.check(mask)
                turned = scores.transpose(0, 1).contiguous().transpose(0, 1)
                expect(torch.equal(pattern.project(turned, keep), mask), f"{pattern}: memory layout changes the mask")
        kept, dropped = _kept_and_dropped(pattern, random, keeps[-1] if fixed is not None else keeps[2])
        expect(kept >= dropped, f"{pattern}: keeps lower scores than it drops in {shape}")
        _refuses_nan(pattern, shape, keeps[-1] if fixed is not None else cell)
    expect(used > 0, f"{pattern} fits none of the shapes {tuple(shapes)}")


def _kept_and_dropped(pattern: Pattern, scores: Tensor, keep: int) -> tuple[float, float]:
    mask = pattern.project(scores, keep)
    dropped = scores[~mask].mean() if bool((~mask).any()) else torch.tensor(0.0)
    return float(scores[mask].mean()), float(dropped)


def _refuses_nan(pattern: Pattern, shape: tuple[int, ...], keep: int) -> None:
    try:
        pattern.project(torch.full(shape, float("nan")), keep)
    except NumericsError:
        return
    raise AssertionError(f"{pattern} accepts NaN scores")


def check_schedule(schedule: Schedule, low: float | None = None, high: float | None = None) -> None:
    """Defined and finite on [0, 1] and beyond, clamped at both ends, within bounds."""
    values = [schedule(t / 50) for t in range(51)]
    expect(schedule(-1.0) == values[0], f"{schedule} is not clamped before 0")
    expect(schedule(2.0) == values[-1], f"{schedule} is not clamped after 1")
    for value in values:
        if isinstance(value, (int, float)):
            expect(low is None or value >= low - 1e-12, f"{schedule} falls below {low}: {value}")
            expect(high is None or value <= high + 1e-12, f"{schedule} rises above {high}: {value}")


def check_allocation(allocation: Allocation, shapes: dict[str, tuple[int, ...]] | None = None) -> None:
    """Counts sum exactly to the budget, none is empty or above its size, density 1 keeps everything."""
    shapes = shapes or {"a": (64, 3, 3, 3), "b": (64, 64, 3, 3), "c": (128, 64, 3, 3), "d": (10, 512)}
    cells = dict.fromkeys(shapes, 1)
    total = sum(torch.Size(s).numel() for s in shapes.values())
    generator = torch.Generator().manual_seed(0)
    for density in (1.0, 0.9, 0.5, 0.37, 0.2):
        if isinstance(allocation, Global):
            scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
            counts = global_counts(scores, cells, budget(density, total))
        else:
            counts = keep_counts(allocation, shapes, cells, density)
        expect(sum(counts.values()) == budget(density, total), f"{allocation}: counts miss the budget at {density}")
        for name, count in counts.items():
            size = torch.Size(shapes[name]).numel()
            expect(1 <= count <= size, f"{allocation}: {name} keeps {count} of {size}")
            expect(density < 1 or count == size, f"{allocation}: density 1 drops weights of {name}")


class _Probe(nn.Module):
    """A small network with every kind of layer that scores meet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(F.relu(self.hidden(x)))


def probe_context(needs: frozenset[str], pattern: Pattern = Unstructured(), step: int = 10) -> Context:
    """A Context over a small trained-for-one-step network with all the statistics in `needs`."""
    torch.manual_seed(0)
    model = _Probe()
    x, y = torch.rand(120, 1, 6, 6), torch.arange(120) % 4
    groups = select(model)
    names = [m.name for g in groups for m in g.members]
    statistics = Statistics(names, needs)
    statistics.arm(model)
    F.cross_entropy(model(x), y).backward()
    parameters = dict(model.named_parameters())
    statistics.observe({name: parameters[name].grad for name in names})
    statistics.commit()
    statistics.disarm()
    return Context(
        model=model,
        groups=groups,
        patterns={g.name: pattern for g in groups},
        masks={g.name: torch.rand(g.shape) < 0.7 for g in groups},
        weights={name: parameters[name].detach() for name in names},
        statistics=statistics.values,
        step=step,
        steps=100,
        data=[(x, y)],
    )


def check_score(score: Score) -> None:
    """Right shapes, finite, deterministic, and leaves model, gradients and random state as they were."""
    ctx = probe_context(score.needs)
    before = {name: t.clone() for name, t in ctx.model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in ctx.model.named_parameters() if p.grad is not None}
    state = torch.random.get_rng_state()
    first, second = score(ctx), score(ctx)
    expect(torch.equal(torch.random.get_rng_state(), state), f"{score} draws from the global generator")
    for group in ctx.groups:
        expect(first[group.name].shape == group.shape, f"{score}: wrong shape for {group.name}")
        expect(bool(torch.isfinite(first[group.name]).all()), f"{score}: not finite for {group.name}")
        expect(torch.equal(first[group.name], second[group.name]), f"{score}: two calls differ for {group.name}")
    for name, t in ctx.model.state_dict().items():
        expect(torch.equal(t, before[name]), f"{score} changes {name}")
    for name, p in ctx.model.named_parameters():
        expect(p.grad is None or torch.equal(p.grad, grads[name]), f"{score} changes the gradient of {name}")


def _half(numel: int, cell: int) -> int:
    return numel // 2 // cell * cell


def check_update(update: Update, pattern: Pattern = Unstructured()) -> None:
    """Legal masks, exact counts, deterministic; what survives was active (growth apart)."""
    ctx = probe_context(update.needs, pattern)
    for group in ctx.groups:  # start from a legal mask
        try:
            keep = pattern.fixed(group.shape) or group.numel // 2 // pattern.cell(group.shape) * pattern.cell(
                group.shape
            )
        except GossamerError:
            ctx.patterns[group.name] = Unstructured()
            keep = group.numel // 2
        ctx.masks[group.name] = ctx.patterns[group.name].project(torch.rand(group.shape), keep)
    before = {name: mask.clone() for name, mask in ctx.masks.items()}
    try:
        change, again = update.apply(ctx), update.apply(ctx)
    except MaskError as error:
        raise AssertionError(f"{update}: {error}") from error
    for group in ctx.groups:
        mask = change.masks[group.name]
        expect(torch.equal(ctx.masks[group.name], before[group.name]), f"{update} writes into the old masks")
        expect(torch.equal(mask, again.masks[group.name]), f"{update} is not deterministic")
        ctx.patterns[group.name].check(mask)
        expect(bool((change.survivors[group.name] <= mask).all()), f"{update}: survivors outside the mask")
    if update.when is not None and not isinstance(update.when, Every):
        raise AssertionError(f"{update}: `when` must be Every or None")
