"""Ensembles: units in equal groups, and masks that let a group listen to a few groups of the layer before only.

Source: Konstantaropoulos & Smirnakis & Papadopouli 2025 (G2GNet, arXiv 2508.14140). Its method section could not be
read; group sizes, probabilities and the repair rule are a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError, MaskError, NumericsError, ShapeError
from ..kernels.topk import topk_mask, topk_rows
from .context import Context
from .scores import Score, Scores


def group_sizes(units: int, groups: int) -> list[int]:
    """Sizes of `groups` contiguous groups of `units` units; the remainder is spread over the first ones.

    >>> group_sizes(10, 4)
    [3, 3, 2, 2]
    """
    if not 1 <= groups <= units:
        raise ShapeError(f"{units} units cannot form {groups} groups; choose 1 to {units}")
    return [units // groups + (i < units % groups) for i in range(groups)]


def fan_in(density: float, groups: int) -> int:
    """K: how many of `groups` input groups a group listens to, round(density * groups).

    Raises:
        ConfigError: no group would be left; the message has the smallest density that works.
    """
    k = round(density * groups)
    if not 0 < density <= 1 or k < 1:
        raise ConfigError(f"density {density} of {groups} groups leaves none; choose at least {0.5 / groups:.4g}")
    return k


@dataclass(frozen=True)
class GroupToGroup:
    """Every group of outputs listens to `k` groups of inputs; the units of a group share their inputs.

    A weight (out, in, ...) is seen as out x in; the kernel of a convolution is kept or dropped as one. Where groups
    are of unequal size every unit keeps k * (in // groups) inputs, so that the count does not depend on the scores.

    Args:
        groups: groups of outputs. inputs: groups of inputs; None: as many.
        k: input groups per output group.
        p_in: share of edges kept inside connected pairs of groups. p_out: share kept elsewhere.
        identity: group i always listens to group i (hierarchical streams).
    """

    groups: int = 8
    k: int = 2
    inputs: int | None = None
    p_in: float = 1.0
    p_out: float = 0.0
    identity: bool = False

    def __post_init__(self) -> None:
        sources = self._sources
        if not 1 <= self.k <= sources:
            raise ConfigError(f"group_to_group: k must be in 1..{sources} (the groups of inputs), got {self.k}")
        for name, share in (("p_in", self.p_in), ("p_out", self.p_out)):
            if not 0 <= share <= 1:
                raise ConfigError(f"group_to_group: {name} must be in [0, 1], got {share}")

    @property
    def _sources(self) -> int:
        return self.groups if self.inputs is None else self.inputs

    def _layout(self, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        if len(shape) < 2:
            raise ShapeError(f"{self} needs a weight (out, in, ...), got shape {shape}")
        return group_sizes(shape[0], self.groups), group_sizes(shape[1], self._sources)

    def _width(self, shape: tuple[int, ...]) -> int:
        """Inputs that every unit is connected to, edges of p_in before they are thinned."""
        return shape[1] if self.k == self._sources else self.k * (shape[1] // self._sources)

    def _counts(self, rows: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """Edges kept inside and outside the connected pairs of a group of `rows` units."""
        width = self._width(shape)
        return round(self.p_in * rows * width), round(self.p_out * rows * (shape[1] - width))

    def cell(self, shape: tuple[int, ...]) -> int:
        return 1

    def cells(self, scores: Tensor) -> Tensor:
        return scores.reshape(-1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.reshape(shape)

    def fixed(self, shape: tuple[int, ...]) -> int:
        rows, _ = self._layout(shape)
        return sum(map(sum, (self._counts(r, shape) for r in rows))) * torch.Size(shape[2:]).numel()

    def graph(self, scores: Tensor) -> Tensor:
        """Which group listens to which: bool (groups, inputs), `k` per row, by mean score of the pair.

        An input group that nobody would hear takes the place of the weakest one that somebody else hears too, so
        every row keeps `k`.
        """
        pairs = _pair_means(scores, *self._layout(tuple(scores.shape)))
        if self.identity:
            pairs.fill_diagonal_(float("inf"))
        chosen = topk_rows(pairs, self.k)
        for column in (~chosen.any(0)).nonzero().flatten().tolist():
            spare = torch.where(chosen & (chosen.sum(0) > 1), pairs, float("inf"))
            if self.identity:
                spare.fill_diagonal_(float("inf"))
            lowest = spare.min(1)
            gain = torch.where(lowest.values < float("inf"), pairs[:, column] - lowest.values, -float("inf"))
            row = int(gain.argmax())
            if not bool(gain[row] > -float("inf")):
                break  # fewer connections than input groups
            chosen[row, lowest.indices[row]] = False
            chosen[row, column] = True
        return chosen

    def project(self, scores: Tensor, keep: int | None = None) -> Tensor:
        """The groups with the largest mean scores are connected; `keep`, if given, must be what the pattern implies.

        Raises:
            ShapeError: more groups than units. MaskError: another `keep`. NumericsError: NaN.
        """
        shape = tuple(scores.shape)
        if keep is not None and keep != self.fixed(shape):
            raise MaskError(f"{self} keeps {self.fixed(shape)} of {scores.numel()}, not {keep}")
        if bool(scores.isnan().any()):
            raise NumericsError("scores contain NaN")
        rows, columns = self._layout(shape)
        edges = scores.reshape(shape[0], shape[1], -1).mean(2)
        hears = self.graph(scores).repeat_interleave(torch.tensor(columns, device=scores.device), 1)
        mask = torch.zeros_like(edges, dtype=torch.bool)
        for block, out, heard in zip(edges.split(rows), mask.split(rows), hears, strict=True):
            reached = topk_mask(torch.where(heard, block.mean(0), -torch.inf), self._width(shape))
            inside, outside = self._counts(len(block), shape)
            out |= topk_mask(torch.where(reached, block, -torch.inf), inside)
            out |= topk_mask(torch.where(reached, -torch.inf, block), outside)
        return mask.reshape(*mask.shape, *[1] * (len(shape) - 2)).expand(shape).contiguous()

    def check(self, mask: Tensor) -> None:
        """Raise MaskError unless counts are right and, without exceptions, the units of a group share their inputs."""
        shape = tuple(mask.shape)
        rows, _ = self._layout(shape)
        edges = mask.reshape(shape[0], shape[1], -1)
        whole = bool((edges == edges[:, :, :1]).all())
        counts = [int(block[:, :, 0].sum()) for block in edges.split(rows)]
        shared = all(bool((block == block[:1]).all()) for block in edges.split(rows))
        strict = self.p_in in (0.0, 1.0) and self.p_out in (0.0, 1.0)
        if not whole or counts != [sum(self._counts(r, shape)) for r in rows] or (strict and not shared):
            raise MaskError(f"mask of shape {shape} is not of pattern {self}")


def _pair_means(scores: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Mean of every (group, group) rectangle: (len(rows), len(columns))."""
    edges = scores.reshape(sum(rows), sum(columns), -1).mean(2)
    tall = torch.stack([block.mean(0) for block in edges.split(rows)])
    return torch.stack([block.mean(1) for block in tall.split(columns, dim=1)], 1)


@dataclass(frozen=True)
class WithinGroups:
    """A score that ranks edges between groups which share an active edge above all others: modularity persists.

    Args:
        score: the ranking. groups: groups of outputs. inputs: groups of inputs; None: as many.
    """

    score: Score
    groups: int = 8
    inputs: int | None = None

    @property
    def needs(self) -> frozenset[str]:
        return self.score.needs

    def __call__(self, ctx: Context) -> Scores:
        found = self.score(ctx)
        return {name: self._rank(values, ctx.masks[name]) for name, values in found.items()}

    def _rank(self, values: Tensor, mask: Tensor) -> Tensor:
        rows = group_sizes(mask.shape[0], self.groups)
        columns = group_sizes(mask.shape[1], self.inputs or self.groups)
        linked = _pair_means(mask.float(), rows, columns) > 0
        device = mask.device
        wide = linked.repeat_interleave(torch.tensor(rows, device=device), 0)
        wide = wide.repeat_interleave(torch.tensor(columns, device=device), 1)
        wide = wide.reshape(*wide.shape, *[1] * (mask.ndim - 2))
        return torch.where(wide, values, values - (values.max() - values.min()) - 1)


class GroupLinear(nn.Module):
    """A linear layer under a strict `GroupToGroup` mask, as one small dense product per group.

    Args:
        layer: the layer; it is not changed. mask: bool (out, in), equal within every group of outputs.
        groups: groups of outputs, of equal size and with equally many inputs.
    Raises:
        MaskError: the mask is not of that form.
    """

    index: Tensor

    def __init__(self, layer: nn.Linear, mask: Tensor, groups: int) -> None:
        super().__init__()
        out, _ = mask.shape
        blocks = mask.reshape(groups, -1, mask.shape[1]) if out % groups == 0 else mask[:0, None]
        widths = blocks[:, 0].sum(1)
        if not len(blocks) or bool((blocks != blocks[:, :1]).any()) or bool((widths != widths[0]).any()):
            raise MaskError(f"mask of shape {tuple(mask.shape)} is not {groups} equal groups that share their inputs")
        index = blocks[:, 0].nonzero()[:, 1].reshape(groups, -1)  # (groups, width)
        weight = layer.weight.detach().reshape(groups, -1, mask.shape[1])
        picked = weight.gather(2, index[:, None].expand(-1, weight.shape[1], -1))
        self.register_buffer("index", index)
        self.weight = nn.Parameter(picked.transpose(1, 2).contiguous())  # (groups, width, out / groups)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        flat = x.reshape(-1, x.shape[-1])
        parts = flat.T[self.index].transpose(1, 2)  # (groups, batch, width)
        y = torch.bmm(parts, self.weight).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
