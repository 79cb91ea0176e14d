"""`solve_ot`: one verb for all regularisers and solvers, for one problem or a batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gossamer.errors import ConfigError, ShapeError, unknown
from gossamer.transport.problem import Problem, check_k, check_problem
from gossamer.transport.reference import network_simplex, sinkhorn
from gossamer.transport.regularizers import Entropic, KSparse, Quadratic, Regularizer, Unregularised
from gossamer.transport.result import Transport, pack
from gossamer.transport.solvers import FORMS, LBFGS, Objective, Solver, maximise


def solve_ot(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    reg: Regularizer = Quadratic(),
    *,
    axis: str = "columns",
    form: str = "semi_dual",
    solver: Solver = LBFGS(),
    mask: Tensor | None = None,
    start: Transport | None = None,
) -> Transport:
    """Move mass a to mass b at the least regularised cost.

    Args:
        cost: (..., m, n), real, finite. a: (..., m) or (m,) row sums. b: (..., n) or (n,) column sums, of the
            same total as a, which need not be 1. None: uniform with total 1.
        reg: `KSparse(k, gamma)`, `Quadratic(gamma)`, `Entropic(epsilon)` or `Unregularised()`.
        axis: "columns" or "rows": the lines that have at most k non-zeros.
        form: "semi_dual" keeps the sums of these lines exact whatever the solver does; "dual" frees both potentials.
        solver: `LBFGS` (float64), `Adam` or `GradientAscent` (at least float32, no host synchronisation in the loop).
        mask: (..., m) or (m,) bool; rows that are False are padding, without mass.
        start: result of a similar problem, from whose potentials the solver starts.
    Returns:
        `Transport`; its errors say how far the plan is from the marginals, and `status` what to do about it.
    Raises:
        ConfigError: an unknown axis or form, integer costs, or k larger than the lines. ShapeError: shapes disagree.
        NumericsError: NaN or infinity, negative marginals, or unequal masses. MissingExtra: POT is not installed.
    Source: Liu, Puigcerver and Blondel 2023, section 4.

    >>> r = solve_ot(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), reg=KSparse(k=1, gamma=0.1))
    >>> r.plan
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    problem = check_problem(cost, a, b, axis, mask, _dtype(cost, solver))
    lead = cost.shape[:-2]
    if isinstance(reg, Entropic):
        return pack(problem, axis, lead, *sinkhorn(problem, reg.epsilon))
    if isinstance(reg, Unregularised):
        return pack(problem, axis, lead, *network_simplex(problem))
    k = problem.cost.shape[2]
    if isinstance(reg, KSparse):
        check_k(reg.k, problem)
        k = reg.k
    if form == "dual" and axis == "rows" and mask is not None:
        raise ConfigError("padded rows have exactly no mass only with form='semi_dual' where axis='rows'")
    return _solve(problem, k, reg.gamma, axis, form, solver, lead, start)


def _solve(
    problem: Problem,
    k: int,
    gamma: float,
    axis: str,
    form: str,
    solver: Solver,
    lead: torch.Size,
    start: Transport | None,
) -> Transport:
    objective = Objective(problem, k, gamma, form)
    done = maximise(objective, _start(problem, form, axis, start), solver)
    alpha, beta = objective.split(done.x)
    lines = objective.lines(done.x, plan=True)
    value, gradient = objective.ascent(done.x, lines)
    penalty = gamma / 2 * lines.plan.square().sum((-1, -2))
    converged = done.converged
    if not isinstance(solver, LBFGS):
        converged = objective.error(gradient) <= LBFGS().tolerance
    line = -lines.level if beta is None else beta
    return pack(problem, axis, lead, lines.plan, alpha, line, value, penalty, converged, done.steps)


def _dtype(cost: Tensor, solver: Solver) -> torch.dtype:
    half = cost.dtype in (torch.float16, torch.bfloat16)
    if isinstance(solver, LBFGS) and cost.device.type != "mps":
        if half:
            warnings.warn(f"costs of {cost.dtype} are solved in float64 by L-BFGS", stacklevel=3)
        return torch.float64
    return torch.float64 if cost.dtype is torch.float64 else torch.float32


def _start(problem: Problem, form: str, axis: str, start: Transport | None) -> Tensor:
    """Zeros, or the potentials of an earlier result."""
    if start is None:
        zeros = torch.zeros_like(problem.a)
        return zeros if form == "semi_dual" else torch.cat([zeros, torch.zeros_like(problem.b)], -1)
    entry, line = (start.alpha, start.beta) if axis == "columns" else (start.beta, start.alpha)
    parts = []
    for name, given, like in (("entries", entry, problem.a), ("lines", line, problem.b)):
        if given.numel() != like.numel():
            raise ShapeError(f"start has potentials for {given.numel()} {name}, but the problem has {like.numel()}")
        parts.append(torch.nan_to_num(given.reshape(like.shape).to(like), neginf=0.0))
    return parts[0] if form == "semi_dual" else torch.cat(parts, -1)
