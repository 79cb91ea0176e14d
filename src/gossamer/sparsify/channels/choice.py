"""Which channels stay: scores of channels, rules that cut them, and a vote where several layers share a channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ...errors import ConfigError, MaskError, NumericsError, ShapeError, unknown
from ...kernels.topk import topk_mask
from ..allocation import budget
from .groups import ChannelGraph, ChannelGroup

Parts = Mapping[str, list[Tensor]]  # group -> one tensor (units,) for each layer that has a say


# --------------------------------------------------------------------------- scores (larger = keep)


def bn_scale(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """|gamma| of every batch normalisation of the group (network slimming, Liu et al. 2017).

    Raises:
        ConfigError: there is none, or one without scales.
    """
    parameters = dict(model.named_parameters())
    out = []
    for member, role in zip(group.members, group.roles, strict=True):
        owner = model.get_submodule(member.name.rpartition(".")[0])
        if role == "scale" and isinstance(owner, nn.modules.batchnorm._BatchNorm):
            out.append(member.reduce(parameters[member.name].detach().abs()))
    if not out:
        raise ConfigError(f"layer {group.name} has no scale to regularise: no batch normalisation with affine=True")
    return out


def l1(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """Mean |w| of every filter that makes the channel (Li et al. 2017)."""
    return [_rows(w, group, index).abs().mean(1) for index, w in _makers(model, group)]


def fpgm(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """Sum of distances to the other filters: what lies near their geometric median goes (He et al. 2019, eq. 5)."""
    out = []
    for index, w in _makers(model, group):
        rows = _rows(w, group, index)
        out.append(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1))
    return out


def _makers(model: nn.Module, group: ChannelGroup) -> list[tuple[int, Tensor]]:
    parameters = dict(model.named_parameters())
    found = enumerate(zip(group.members, group.roles, strict=True))
    out = [(i, parameters[member.name].detach()) for i, (member, role) in found if role == "out"]
    return [(i, w) for i, w in out if w.ndim > 1]


def _rows(w: Tensor, group: ChannelGroup, index: int) -> Tensor:
    """The weights of each unit in one member, (units, n)."""
    member = group.members[index]
    flat = w.movedim(member.dim or 0, 0).flatten(1)
    return flat if member.index is None else flat[member.index.to(w.device)].flatten(1)


CHANNEL_SCORES: dict[str, Callable[[nn.Module, ChannelGroup], list[Tensor]]] = {
    "bn_scale": bn_scale,
    "l1": l1,
    "fpgm": fpgm,
}


# --------------------------------------------------------------------------- rules


class Rule(Protocol):
    """Cuts scores: for every layer that has a say, which channels stay (bool)."""

    def __call__(self, scores: Parts) -> dict[str, list[Tensor]]: ...


@dataclass(frozen=True)
class Threshold:
    """Keeps scores above `value` (the authors' 0.01 for scales)."""

    value: float = 0.01

    def __call__(self, scores: Parts) -> dict[str, list[Tensor]]:
        return {name: [part > self.value for part in parts] for name, parts in scores.items()}


@dataclass(frozen=True)
class Energy:
    """Drops the smallest scores that together hold at most `share` of a layer's sum of squares.

    Args:
        share: the authors' 1e-4. floor: a layer whose largest score is below it is dropped whole.
    Source: "optimal thresholding", Ye et al. 2020; Jiang et al. 2022.
    """

    share: float = 1e-4
    floor: float = 1e-3

    def __call__(self, scores: Parts) -> dict[str, list[Tensor]]:
        return {name: [self._keep(part) for part in parts] for name, parts in scores.items()}

    def _keep(self, part: Tensor) -> Tensor:
        if not float(part.max()) >= self.floor:
            return torch.zeros_like(part, dtype=torch.bool)
        squares = part.double().square()
        order = squares.argsort(stable=True)
        gone = squares[order].cumsum(0) <= self.share * squares.sum()
        keep = torch.ones_like(part, dtype=torch.bool)
        keep[order[gone]] = False
        return keep


@dataclass(frozen=True)
class Ratio:
    """Drops a share of the channels with the lowest scores, exactly.

    Args:
        sparsity: the share, in [0, 1). scope: "layer" in every layer alike, "global" ranks all groups together
            (by the mean over a group's layers).
    """

    sparsity: float = 0.5
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1 or self.scope not in ("layer", "global"):
            raise ConfigError(f"need sparsity in [0, 1) and scope layer or global, got {self.sparsity}, {self.scope!r}")

    def __call__(self, scores: Parts) -> dict[str, list[Tensor]]:
        density = 1 - self.sparsity
        if self.scope == "layer":
            return {n: [topk_mask(part, budget(density, len(part))) for part in parts] for n, parts in scores.items()}
        means = {name: torch.stack(parts).mean(0) for name, parts in scores.items()}
        flat = torch.cat(list(means.values()))
        kept = topk_mask(flat, budget(density, len(flat))).split([len(mean) for mean in means.values()])
        return {name: [part] for name, part in zip(means, kept, strict=True)}


def vote(keeps: list[Tensor]) -> Tensor:
    """One mask for layers that share their channels.

    The votes against each channel are counted; pruned is what the strictest majority is against (all, all but one,
    ...) by which at least as many channels go as in the layer that prunes fewest.

    Args:
        keeps: bool (units,) of each layer.
    Returns:
        bool (units,), True = kept.
    Source: Jiang et al. 2022, the authors' handling of residual groups.

    >>> vote([torch.tensor([False, False, True]), torch.tensor([False, True, True])]).tolist()
    [False, True, True]
    """
    against = torch.stack([~keep for keep in keeps])
    votes, fewest = against.sum(0), int(against.sum(1).min())
    level = next(v for v in range(len(keeps), 0, -1) if int((votes >= v).sum()) >= fewest)
    return votes < level


# --------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class Choice:
    """How the channels that stay are chosen.

    Args:
        score: "bn_scale", "l1" or "fpgm". rule: cuts the scores.
        least: channels that every group keeps at least: those with the largest mean scores.
        only: shell patterns over group names; groups without a match stay whole.
    """

    score: str = "bn_scale"
    rule: Rule = Threshold()
    least: int = 1
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.score not in CHANNEL_SCORES:
            raise unknown("channel score", self.score, CHANNEL_SCORES)
        if self.least < 1:
            raise ConfigError(f"every group keeps at least one channel, got least={self.least}")


def choose_channels(model: nn.Module, graph: ChannelGraph, choice: Choice = Choice()) -> dict[str, Tensor]:
    """The unit mask (True = kept) of every group that `choice` covers.

    Raises:
        ConfigError: no group matches; a group without batch-norm scales where they are the score.
        NumericsError: NaN or infinite scores.
    """
    groups = [group for group in graph.groups if any(fnmatchcase(group.name, g) for g in choice.only)]
    if not groups:
        raise unknown("channel group", " ".join(choice.only), [group.name for group in graph.groups])
    scores = {group.name: CHANNEL_SCORES[choice.score](model, group) for group in groups}
    for name, parts in scores.items():
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise NumericsError(f"channels of {name} have NaN or infinite scores; load a sound model first")
    masks = {name: vote(keeps) for name, keeps in choice.rule(scores).items()}
    for name, mask in masks.items():
        least = min(choice.least, len(mask))
        if int(mask.sum()) < least:
            masks[name] = topk_mask(torch.stack(scores[name]).mean(0), least)
    return masks


def check_channels(graph: ChannelGraph, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Given masks, if they fit the model.

    Raises:
        ConfigError: no such group, or one whose channels must stay. ShapeError: another number of channels.
        MaskError: a group would be emptied.
    """
    for name, mask in masks.items():
        group = graph.group(name)
        if tuple(mask.shape) != group.shape or mask.dtype != torch.bool:
            raise ShapeError(f"{name} needs a bool mask {group.shape}, got {mask.dtype} {tuple(mask.shape)}")
        if not bool(mask.any()):
            raise MaskError(f"all {group.numel} channels of {name} would be removed; keep at least one")
    return dict(masks)


def channel_rows(model: nn.Module, graph: ChannelGraph, masks: Mapping[str, Tensor]) -> tuple[tuple[str, str], ...]:
    """Rows for `BNL1.channels`: the batch-norm scales of the channels that `masks` drops.

    Raises:
        ConfigError: a group that loses channels has no batch-norm scale.
    """
    parameters = dict(model.named_parameters())
    gone: dict[str, Tensor] = {}
    for name, mask in masks.items():
        group = graph.group(name)
        if not bool(mask.all()):
            bn_scale(model, group)
        for member, role in zip(group.members, group.roles, strict=True):
            if role == "scale":
                kept = torch.ones_like(parameters[member.name], dtype=torch.bool)
                member.write(mask.to(kept.device), kept)
                gone[member.name] = gone.get(member.name, torch.zeros_like(kept)) | ~kept
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in gone}
    rows = {n: row for n, row in gone.items() if isinstance(owners[n], nn.modules.batchnorm._BatchNorm)}
    return tuple((name, "".join("1" if bit else "0" for bit in row.tolist())) for name, row in rows.items())
