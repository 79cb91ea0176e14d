"""Two ways to maximise the dual or semi-dual: L-BFGS to convergence, or a fixed number of cheap steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels.sparse_lines import SparseLines, sparse_lines
from gossamer.transport.lbfgs import Minimum, lbfgs
from gossamer.transport.problem import Problem
from gossamer.transport.support import Support


@dataclass(frozen=True)
class LBFGS:
    """To convergence, in float64; the default.

    Args:
        steps: at most. tolerance: of the marginal error, relative to the mass. history: pairs remembered.
        gain: stop where steps raise the value by a smaller share than this: small k ends so, at a kink.
        refine: where a single problem on the CPU ends at a kink, go on with a search made for such, which costs several
            times as long and raises the value a little.
        anneal: begin with gamma times this and halve it stage by stage, each from the potentials of the last; 1 starts
            at gamma itself.
    """

    steps: int = 1000
    tolerance: float = 1e-6
    history: int = 10
    gain: float = 1e-12
    refine: bool = True
    anneal: float = 1.0

    def __post_init__(self) -> None:
        _check(steps=self.steps, tolerance=self.tolerance, history=self.history, gain=self.gain)
        _check_anneal(self.anneal)


@dataclass(frozen=True)
class Adam:
    """A fixed number of steps of Adam, without any decision on the host: for use inside of a network.

    Args:
        steps, lr: of the routers of Liu et al. 2023 unless given; lr is in units of the cost.
        cosine: let lr fall to zero along a cosine, which a non-smooth problem needs to settle.
        anneal: gamma falls from this multiple to itself, geometrically over the first half of the steps.
    """

    steps: int = 20
    lr: float = 1e-2
    cosine: bool = False
    anneal: float = 1.0

    def __post_init__(self) -> None:
        _check(steps=self.steps, lr=self.lr)
        _check_anneal(self.anneal)


@dataclass(frozen=True)
class GradientAscent(Adam):
    """As `Adam`, with plain gradient steps; lr is in units of cost / mass, stable up to about gamma / lines."""


Solver = LBFGS | Adam
FORMS = ("semi_dual", "dual")
NEAR, NEWTON = 1e-2, 20  # marginal error from which Newton's steps are tried, and how many


def _check(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} of a solver must be positive and finite, got {value}")


def _check_anneal(value: float) -> None:
    if not 1 <= value < math.inf:
        raise ConfigError(f"anneal multiplies gamma at the start: it must be at least 1, got {value}")


class Objective:
    """Minus the dual value and its gradient as functions of x = alpha (B, m), or (alpha, beta) (B, m + n).

    Args:
        problem: the batch. k: most non-zeros of a line. gamma: weight of the squared norm. form: of `FORMS`.
    """

    def __init__(self, problem: Problem, k: int, gamma: float, form: str) -> None:
        self.problem, self.k, self.gamma, self.form = problem, k, gamma, form

    @property
    def semi(self) -> bool:
        return self.form == "semi_dual"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """alpha, and beta where it is free."""
        m = self.problem.a.shape[1]
        return (x, None) if self.semi else (x[:, :m], x[:, m:])

    def lines(self, x: Tensor, plan: bool = False) -> SparseLines:
        """The maximisers at x."""
        alpha, beta = self.split(x)
        by = self.problem.b if beta is None else beta
        return sparse_lines(self.problem.cost, alpha, by, self.k, self.gamma, self.semi, plan)

    def ascent(self, x: Tensor, lines: SparseLines | None = None) -> tuple[Tensor, Tensor]:
        """Value (B,) to be maximised, and its gradient; `lines`: those at x, where they are known already."""
        alpha, beta = self.split(x)
        lines = self.lines(x) if lines is None else lines
        value = (alpha * self.problem.a).sum(-1) - lines.star.sum(-1)
        gradient = self.problem.a - lines.sums
        if beta is not None:
            value = value + (beta * self.problem.b).sum(-1)
            gradient = torch.cat([gradient, self.problem.b - lines.filled], -1)
        return value, gradient

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.ascent(x)
        return -value, -gradient

    def error(self, gradient: Tensor) -> Tensor:
        """(B,) L1 distance of the marginals, relative to the mass."""
        return gradient.abs().sum(-1) / self.problem.mass


def maximise(objective: Objective, start: Tensor, solver: Solver) -> Minimum:
    """The potentials that the solver finds from `start`."""
    return _converge(objective, start, solver) if isinstance(solver, LBFGS) else _descend(objective, start, solver)


def _converge(objective: Objective, start: Tensor, solver: LBFGS) -> Minimum:
    gamma = objective.gamma
    x, evaluations = start, 0
    steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for stage in range(math.ceil(math.log2(solver.anneal)), -1, -1):
        objective.gamma = gamma * min(2.0**stage, solver.anneal)
        loose = 1 if stage == 0 else 1e4  # early stages only show the way
        tolerance = min(solver.tolerance * loose, max(solver.tolerance, 1e-2))
        search = _scipy if len(x) == 1 and x.is_cpu else lbfgs
        done = search(objective, x, objective.error, tolerance, solver.steps, solver.history, solver.gain)
        x, evaluations = done.x, evaluations + done.evaluations
        steps = steps + done.steps
    converged = done.converged
    if not bool(converged.all()):
        x, converged = _newton(objective, x, solver.tolerance)
    if solver.refine and search is _scipy and not bool(converged):  # a kink, which the other search can follow downhill
        done = lbfgs(objective, x, objective.error, solver.tolerance, solver.steps, solver.history, solver.gain)
        return Minimum(done.x, done.converged, steps + done.steps, evaluations + done.evaluations)
    return Minimum(x, converged, steps, evaluations)


def _newton(objective: Objective, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Newton's steps on the non-zeros that were found, while they lower the marginal error: exact once these are right.

    Returns:
        potentials, and (B,) whether their error is at most `tolerance`.
    """
    error = objective.error(objective(x)[1])
    for _ in range(NEWTON):
        if not objective.semi or not bool(((error > tolerance) & (error < NEAR)).any()):
            break
        lines = objective.lines(x, plan=True)
        on = Support(lines.plan)
        # only what lies in the range of the Laplacian can be mended without other non-zeros
        ahead = x + objective.gamma * on.solve(objective.problem.a - lines.sums, 1e-8)
        after = objective.error(objective(ahead)[1])
        better = after < error
        if not bool(better.any()):
            break
        x, error = torch.where(better.unsqueeze(-1), ahead, x), torch.where(better, after, error)
    return x, error <= tolerance


def _scipy(
    objective: Objective,
    start: Tensor,
    error: Callable[[Tensor], Tensor],
    tolerance: float,
    steps: int,
    history: int,
    gain: float,
) -> Minimum:
    """As `lbfgs`, for one problem on the CPU, where compiled code is faster."""
    from scipy.optimize import minimize

    problem, semi = objective.problem, objective.semi
    wanted = (problem.a if semi else torch.cat([problem.a, problem.b], -1))[0].numpy()

    def function(x: Any) -> tuple[float, Any]:
        """Minus `objective.ascent`, without tensors where there is one problem."""
        lines = objective.lines(torch.from_numpy(x).unsqueeze(0))
        sums = lines.sums if semi else torch.cat([lines.sums, lines.filled], -1)
        return float(lines.star.sum()) - float(x @ wanted), sums[0].numpy() - wanted

    # the largest entry of the gradient bounds its sum
    least = tolerance * float(objective.problem.mass) / start.numel()
    options = {"maxiter": steps, "maxcor": history, "gtol": least, "ftol": gain, "maxfun": 20 * steps}
    found = minimize(function, start.squeeze(0).numpy(), jac=True, method="L-BFGS-B", options=options)
    x, gradient = (torch.from_numpy(part).unsqueeze(0) for part in (found.x, found.jac))
    return Minimum(x, error(gradient) <= tolerance, torch.tensor([found.nit]), int(found.nfev))


def _descend(objective: Objective, start: Tensor, solver: Adam) -> Minimum:
    gamma = objective.gamma
    x = start
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(solver.steps):
        objective.gamma = gamma * solver.anneal ** max(0.0, 1 - 2 * step / solver.steps)
        lr = solver.lr * ((1 + math.cos(math.pi * step / solver.steps)) / 2 if solver.cosine else 1)
        _, gradient = objective.ascent(x)
        if isinstance(solver, GradientAscent):
            x = x + lr * gradient
            continue
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        mean, scale = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        x = x + lr * mean / (scale.sqrt() + 1e-8)
    objective.gamma = gamma
    steps = torch.full((len(x),), solver.steps, device=x.device)
    return Minimum(x, torch.zeros(len(x), dtype=torch.bool, device=x.device), steps, solver.steps)
