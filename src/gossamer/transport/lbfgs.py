"""L-BFGS for a batch of independent problems at once, with a weak-Wolfe search that non-smooth objectives allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ARMIJO, CURVATURE = 1e-4, 0.9
TRIALS = 25  # of one line search
PATIENCE = 10  # stop after so many steps that gain too little

# x (B, p) -> value (B,), gradient (B, p)
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the search stopped: x (B, p); converged and steps (B,); evaluations of the whole batch."""

    x: Tensor
    converged: Tensor
    steps: Tensor
    evaluations: int


def lbfgs(
    objective: Objective,
    start: Tensor,
    error: Callable[[Tensor], Tensor],
    tolerance: float,
    steps: int,
    history: int,
    gain: float,
) -> Minimum:
    """Minimise every problem of a batch until `error(gradient)` (B,) is at most `tolerance`.

    A problem also stops after `steps`, or where no step along minus the gradient lowers it any more, which is where
    non-smooth problems end; only the first kind counts as converged.

    Args:
        start: (B, p). history: pairs of steps and gradient changes that are remembered.
        gain: share of the value that a step must win, else the search ends.
    Source: Nocedal 1980; Byrd, Nocedal and Schnabel 1994 (compact form); Lewis and Overton 2013 (line search).
    """
    x = start
    value, gradient = objective(x)
    memory = _Memory(x, history)
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    evaluations = 1
    converged = error(gradient) <= tolerance
    active, fresh = ~converged, torch.ones_like(converged)
    past = [value]
    for _ in range(steps):
        if not bool(active.any()):
            break
        direction = -memory.times(gradient)
        uphill = (direction * gradient).sum(-1) >= 0
        direction = torch.where(uphill.unsqueeze(-1), -gradient, direction)
        found, trials = _search(objective, x, value, gradient, direction, active)
        evaluations += trials
        moved = found.moved.unsqueeze(-1)
        memory.add((found.x - x) * moved, (found.gradient - gradient) * moved)
        x, value, gradient = found.x, found.value, found.gradient
        taken += active
        converged |= active & (error(gradient) <= tolerance)
        past = [*past[-PATIENCE:], value]
        flat = past[0] - value <= PATIENCE * gain * value.abs() if len(past) > PATIENCE else torch.zeros_like(active)
        failed = active & ~found.moved
        memory.forget(failed & ~fresh)  # once more along the gradient, then that is all
        active &= ~converged & ~(failed & fresh) & ~flat
        fresh = failed
    return Minimum(x, converged, taken, evaluations)


class _Memory:
    """The last pairs (s, y), and the inverse Hessian that they imply."""

    def __init__(self, like: Tensor, history: int) -> None:
        self.limit = history
        self.s = like.new_zeros(len(like), 0, like.shape[1])
        self.y = self.s
        self.scale: Tensor | None = None

    def add(self, s: Tensor, y: Tensor) -> None:
        """Remember a pair; where the curvature is not positive a pair of zeros, which changes nothing."""
        sy, yy = (s * y).sum(-1), y.square().sum(-1)
        good = sy > 1e-14 * yy
        s, y = s * good.unsqueeze(-1), y * good.unsqueeze(-1)
        self.s = torch.cat([self.s[:, self.s.shape[1] == self.limit :], s.unsqueeze(1)], 1)
        self.y = torch.cat([self.y[:, self.y.shape[1] == self.limit :], y.unsqueeze(1)], 1)
        ratio = sy / yy.clamp(min=torch.finfo(yy.dtype).tiny)
        before = torch.ones_like(ratio) if self.scale is None else self.scale
        self.scale = torch.where(good, ratio, before)

    def forget(self, problems: Tensor) -> None:
        keep = (~problems).view(-1, 1, 1)
        self.s, self.y = self.s * keep, self.y * keep

    def times(self, g: Tensor) -> Tensor:
        """Inverse Hessian times g: scale g + S p - scale Y q in the compact form."""
        if self.scale is None:
            return g / g.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
        scale = self.scale.view(-1, 1, 1)
        products = self.s @ self.y.mT
        curvature = products.diagonal(dim1=-2, dim2=-1)
        upper = products.triu() + torch.diag_embed((curvature == 0).to(g.dtype))
        column = g.unsqueeze(-1)
        q = torch.linalg.solve_triangular(upper, self.s @ column, upper=True)
        inner = curvature.unsqueeze(-1) * q + scale * (self.y @ (self.y.mT @ q)) - scale * (self.y @ column)
        p = torch.linalg.solve_triangular(upper.mT, inner, upper=False)
        return (scale * column + self.s.mT @ p - scale * (self.y.mT @ q)).squeeze(-1)


@dataclass(frozen=True, eq=False)
class _Found:
    x: Tensor
    value: Tensor
    gradient: Tensor
    moved: Tensor  # (B,) whether a lower point was found


def _search(
    objective: Objective, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, active: Tensor
) -> tuple[_Found, int]:
    """Bisect between steps that are too long (no descent) and too short (slope still steep), doubling at first."""
    slope = (direction * gradient).sum(-1)
    step, low, high = torch.ones_like(value), torch.zeros_like(value), torch.full_like(value, torch.inf)
    best = _Found(x, value, gradient, torch.zeros_like(active))
    searching = active.clone()
    trials = 0
    while trials < TRIALS:
        trials += 1
        at = x + torch.where(searching, step, 0.0).unsqueeze(-1) * direction
        f, g = objective(at)
        lower = searching & (f <= value + ARMIJO * step * slope) & (f < value)
        steep = (g * direction).sum(-1) < CURVATURE * slope
        keep = lower.unsqueeze(-1)
        best = _Found(
            torch.where(keep, at, best.x),
            torch.where(lower, f, best.value),
            torch.where(keep, g, best.gradient),
            best.moved | lower,
        )
        low, high = torch.where(lower, step, low), torch.where(searching & ~lower, step, high)
        searching &= ~lower | steep
        if not bool(searching.any()):
            break
        step = torch.where(torch.isinf(high), 2 * step, (low + high) / 2)
    return best, trials
