"""An update for methods that rank at every step: the smallest weights of each layer, anew, at the least cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.topk import topk_mask
from ..maths.schedules import Constant, Every, Schedule
from .context import Context
from .patterns import Unstructured
from .updates import Change

SAMPLE = 32_400  # weights from which the authors of ISS-P estimate a threshold


@dataclass(frozen=True)
class RankLowest:
    """Masks off the ceil(p n) weights of smallest magnitude in every layer; what was masked may return.

    Args:
        sparsity: p, the same in every layer; a schedule is read at the run's time. N:M layers keep their own count.
        max_ratio: largest share of a layer that goes, whatever p says (the authors' code has 0.995).
        sample: layers with more weights take their threshold from so many random ones and then repair it; the mask is
            the same, bit for bit. None ranks all weights. It pays on large layers without the native kernels.
        when: None: once, before training.
    Source: Wang et al. 2023 (ISS-P), section 3.
    """

    sparsity: float | Schedule = field(default_factory=lambda: Constant(0.9))
    max_ratio: float = 1.0
    sample: int | None = None
    when: Every | None = field(default_factory=lambda: Every(1))

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, (int, float)) and not 0.0 <= self.sparsity < 1.0:
            raise ConfigError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if not 0.0 < self.max_ratio <= 1.0:
            raise ConfigError(f"max_ratio must lie in (0, 1], got {self.max_ratio}")
        if self.sample is not None and self.sample < 100:
            raise ConfigError(f"a threshold needs a sample of at least 100 weights, got {self.sample}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def apply(self, ctx: Context) -> Change:
        p = self.sparsity if isinstance(self.sparsity, (int, float)) else self.sparsity(ctx.time)
        masks = {}
        for group in ctx.groups:
            size = group.reduce(lambda name: ctx.weights[name].abs())
            pattern = ctx.patterns[group.name]
            if pattern.fixed(group.shape) is not None:
                masks[group.name] = pattern.project(size)
                continue
            keep = kept_count(p, group.numel, self.max_ratio)
            if not isinstance(pattern, Unstructured):
                cell = pattern.cell(group.shape)
                masks[group.name] = pattern.project(size, keep // cell * cell)
            elif self.sample is not None and group.numel > self.sample:
                masks[group.name] = largest(size, keep, self.sample, ctx.rng(group.name))
            else:
                masks[group.name] = topk_mask(size, keep, name=f"weights of {group.name}")
        return Change(masks, masks)


def kept_count(sparsity: float, total: int, max_ratio: float = 1.0) -> int:
    """What is left of `total` weights without the ceil(p n) smallest.

    >>> kept_count(0.95, 50), kept_count(0.999, 1000, 0.995)
    (2, 5)
    """
    return total - min(math.ceil(sparsity * total - 1e-9), math.floor(max_ratio * total + 1e-9))


def bracket(values: Tensor, keep: int, sample: int, rng: torch.Generator) -> tuple[float, float]:
    """Two values between which the `keep`-th largest of `values` (flat) lies, but for one case in about 10^4.

    The quantile of a random sample is off by its standard deviation sqrt(p (1 - p) / sample); four of them on
    either side are taken.
    """
    chosen = torch.randint(values.numel(), (sample,), generator=rng).to(values.device)
    ordered = values[chosen].sort().values
    p = 1.0 - keep / values.numel()
    slack = 4.0 * math.sqrt(p * (1.0 - p) / sample) + 1.0 / sample
    low, high = (math.floor((p + side) * sample) for side in (-slack, slack))
    first = -math.inf if low < 0 else float(ordered[low])
    last = math.inf if high >= sample else float(ordered[high])
    return first, last


def largest(scores: Tensor, keep: int, sample: int, rng: torch.Generator) -> Tensor:
    """`topk_mask(scores, keep)`, where only the scores near an estimated threshold are sorted.

    Args:
        scores: any shape, no NaN. sample: scores that the estimate is taken from. rng: of the sample.
    """
    flat = scores.reshape(-1)
    low, high = bracket(flat, keep, sample, rng)
    mask = flat > high
    missing = keep - int(mask.sum())
    near = ((flat >= low) & ~mask).nonzero().squeeze(1)
    if not 0 <= missing <= near.numel():  # the sample misled, or NaN: rank everything
        return topk_mask(scores, keep)
    mask[near] = topk_mask(flat[near], missing)
    return mask.view(scores.shape)
