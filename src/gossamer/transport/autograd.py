"""Transport inside of a network: its value as a loss, its plan as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.transport.regularizers import KSparse, Quadratic, Regularizer
from gossamer.transport.solve import solve_ot
from gossamer.transport.support import Support


def ot_loss(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, reg: Regularizer = Quadratic(), **options: Any
) -> Tensor:
    """Optimal value (...) of `solve_ot`, differentiable once in cost, a and b.

    By the envelope theorem d value / d cost is the plan, and d value / d a and / d b are the potentials (up to a
    constant that is added to one and taken from the other, as both masses must stay equal). Exact where the solver
    converged.

    Args:
        options: keywords of `solve_ot`.
    """
    value: Tensor = _solve(cost, a, b, reg, options)[0]
    return value


def ot_plan(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, reg: Regularizer = Quadratic(), **options: Any
) -> Tensor:
    """Optimal plan (..., m, n) of `solve_ot` for `KSparse` or `Quadratic`, differentiable once in cost, a and b.

    The derivative is implicit: with the non-zeros fixed, which they are almost everywhere, plan and potentials solve a
    linear system, a graph Laplacian on the non-zeros; no step of the solver is stored. Exact where it converged.

    Raises:
        ConfigError: another regulariser. Besides, as `solve_ot`.
    """
    if not isinstance(reg, KSparse | Quadratic):
        raise ConfigError(f"only plans of KSparse and Quadratic have a derivative here, not {type(reg).__name__}")
    plan: Tensor = _solve(cost, a, b, reg, options)[1]
    return plan


def _solve(cost: Tensor, a: Tensor | None, b: Tensor | None, reg: Regularizer, options: dict[str, Any]) -> Any:
    return _Transport.apply(cost, a, b, reg, options)


class _Transport(torch.autograd.Function):
    """(value, plan) of a problem."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, a: Tensor | None, b: Tensor | None, reg: Regularizer, options: dict[str, Any]
    ) -> Any:
        found = solve_ot(cost, a, b, reg, **options)
        ctx.save_for_backward(found.plan, found.alpha, found.beta)
        ctx.given = [None if t is None else (t.shape, t.dtype) for t in (cost, a, b)]
        ctx.reg, ctx.rows = reg, options.get("axis", "columns") == "rows"
        ctx.set_materialize_grads(False)
        return found.value.to(cost.dtype), found.plan.to(cost.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_value: Tensor | None, of_plan: Tensor | None) -> Any:
        plan, alpha, beta = ctx.saved_tensors
        if of_value is None and of_plan is None:
            return (None,) * 5
        sums: list[Any] = [0.0, 0.0, 0.0]
        if of_value is not None:
            weight = of_value.to(plan.dtype)
            sums = [plan * weight[..., None, None], alpha * weight[..., None], beta * weight[..., None]]
        if of_plan is not None:
            found = implicit(_lines(plan, ctx.rows), _lines(of_plan.to(plan.dtype), ctx.rows), ctx.reg.gamma)
            of_cost, of_a, of_b = (found[0], found[2], found[1]) if ctx.rows else (found[0].mT, found[1], found[2])
            shapes = (plan.shape, alpha.shape, beta.shape)
            sums = [x + y.reshape(s) for x, y, s in zip(sums, (of_cost, of_a, of_b), shapes, strict=True)]
        grads = (None if x is None else g.sum_to_size(x[0]).to(x[1]) for x, g in zip(ctx.given, sums, strict=True))
        return (*grads, None, None)


def _lines(plan: Tensor, rows: bool) -> Tensor:
    """(..., m, n) as a batch of lines."""
    return (plan if rows else plan.mT).flatten(0, -3) if plan.dim() > 2 else (plan if rows else plan.mT).unsqueeze(0)


def implicit(lines: Tensor, upstream: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Vector-Jacobian product of sparse lines (B, n, m) with respect to their cost, entries' and lines' mass.

    On the non-zeros S of a line j the plan is t_ij = (alpha_i - theta_j - c_ij) / gamma. With P the subtraction of each
    line's mean over S, the adjoint of alpha solves sums(P(lambda)) = sums(P(G)); then with G' = G - lambda on S:
    d cost = -P(G') / gamma, d a = lambda, d b_j = mean of G' over line j.
    """
    on = Support(lines)
    values = upstream[on.index]
    adjoint = on.solve(on.sums(on.centred(values)))
    rest = values - adjoint.flatten()[on.entry]
    of_cost = torch.zeros_like(lines)
    of_cost[on.index] = -on.centred(rest) / gamma
    return of_cost, adjoint, on.means(rest).view(lines.shape[:2])
