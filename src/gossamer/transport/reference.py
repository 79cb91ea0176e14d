"""The two classical plans to compare with: entropic by Sinkhorn in the log domain, unregularised by POT."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.errors import MissingExtra
from gossamer.transport.problem import Problem

EVERY = 10  # Sinkhorn steps between two looks at the marginals


class Plan(NamedTuple):
    """lines (B, n, m), potentials (B, m) and (B, n), and (B,) value, penalty, converged, iterations."""

    lines: Tensor
    entry: Tensor
    line: Tensor
    value: Tensor
    penalty: Tensor
    converged: Tensor
    iterations: Tensor


def sinkhorn(problem: Problem, epsilon: float, steps: int = 10_000, tolerance: float = 1e-6) -> Plan:
    """Minimise <T, C> + epsilon sum T (log T - 1), all problems of the batch at once, on any device.

    Source: Cuturi 2013; Peyre and Cuturi 2019, section 4.4 (log domain).
    """
    scaled = -problem.cost.masked_fill(torch.isinf(problem.cost), 0.0) / epsilon  # (B, n, m)
    log_a, log_b = problem.a.log(), problem.b.log()
    f, g = torch.zeros_like(problem.a), torch.zeros_like(problem.b)
    step = 0
    for step in range(1, steps + 1):
        f = log_a - (scaled + g.unsqueeze(2)).logsumexp(1)
        g = log_b - (scaled + f.unsqueeze(1)).logsumexp(2)
        if step % EVERY == 0 or step == steps:
            lines = (scaled + f.unsqueeze(1) + g.unsqueeze(2)).exp()
            converged = (lines.sum(1) - problem.a).abs().sum(-1) <= tolerance * problem.mass
            if bool(converged.all()):
                break
    mass, entry, line = lines.sum((-1, -2)), epsilon * f, epsilon * g
    value = _dot(problem.a, entry) + _dot(problem.b, line) - epsilon * mass
    penalty = epsilon * (torch.xlogy(lines, lines).sum((-1, -2)) - mass)
    return Plan(lines, entry, line, value, penalty, converged, torch.full_like(converged, step, dtype=torch.int64))


def network_simplex(problem: Problem) -> Plan:
    """The cheapest plans, exactly, one problem after the other on the CPU.

    Raises:
        MissingExtra: POT is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise MissingExtra("pot", "transport") from error
    found = []
    cost = problem.cost.masked_fill(torch.isinf(problem.cost), 0.0)
    for c, a, b in zip(cost.double().cpu(), problem.a.double().cpu(), problem.b.double().cpu(), strict=True):
        b = b * (a.sum() / b.sum())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what POT warns about is in `converged`
            plan, log = ot.emd(b.numpy(), a.numpy(), c.numpy(), numItermax=10_000_000, log=True)
        found.append((plan, log["v"], log["u"], log["cost"], log["warning"] is None))
    lines, entry, line, value = (
        torch.stack([torch.as_tensor(one[part]) for one in found]).to(problem.cost) for part in range(4)
    )
    converged = torch.tensor([one[4] for one in found], device=value.device)
    return Plan(
        lines, entry, line, value, torch.zeros_like(value), converged, torch.zeros_like(converged, dtype=torch.int64)
    )


def _dot(mass: Tensor, potential: Tensor) -> Tensor:
    """Potentials of entries without mass are -infinity, and count nothing."""
    return (mass * torch.where(mass > 0, potential, 0.0)).sum(-1)
