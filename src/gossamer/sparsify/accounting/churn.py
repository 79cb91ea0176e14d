"""Churn of masks and weights between two snapshots, and gradient statistics for the log."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import ShapeError, unknown
from .parameters import Masks


@dataclass(frozen=True)
class Churn:
    """Changes of one tensor between two snapshots.

    Args:
        total: entries. dropped, grown: kept before only, kept after only.
        moved: sum of absolute differences of the weights, 0 where none were given.
    """

    total: int
    dropped: int
    grown: int
    moved: float = 0.0

    @property
    def flips(self) -> int:
        """Entries whose mask changed."""
        return self.dropped + self.grown


def churn(before: Masks, after: Masks, weights: tuple[Masks, Masks] | None = None) -> dict[str, Churn]:
    """What changed from one snapshot of masks to another, by name.

    Args:
        before, after: name -> bool mask; snapshots are clones, the live masks are written in place.
        weights: (before, after) weights of the same names, for `moved`.
    Raises:
        ConfigError: a name that only one snapshot has. ShapeError: masks that changed shape.
    """
    for name in set(before) ^ set(after):
        raise unknown("tensor in one of two snapshots", name, set(before) & set(after))
    out = {}
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            raise ShapeError(f"mask of {name} changed its shape from {tuple(old.shape)} to {tuple(new.shape)}")
        moved = float((weights[1][name] - weights[0][name]).abs().sum()) if weights else 0.0
        out[name] = Churn(old.numel(), int((old & ~new).sum()), int((new & ~old).sum()), moved)
    return out


def sad(before: Masks, after: Masks) -> int:
    """Sparse architecture divergence: the number of entries whose mask differs (Zhou et al. 2021, section 3.3)."""
    return sum(change.flips for change in churn(before, after).values())


def gradient_statistics(model: nn.Module, masks: Masks | None = None) -> dict[str, dict[str, float]]:
    """Per parameter with a gradient: `norm` (2-norm), `mean`, `variance` over entries, and with a mask `kept_norm`,
    the norm of the gradient of survivors (gradient flow through the sparse network)."""
    out = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        g: Tensor = parameter.grad.detach().double()
        row = {"norm": float(g.norm()), "mean": float(g.mean()), "variance": float(g.var(correction=0))}
        if masks is not None and name in masks:
            row["kept_norm"] = float(g[masks[name]].norm())
        out[name] = row
    return out
