"""A plan with everything that tells how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.transport.problem import Problem


@dataclass(frozen=True, eq=False)
class Transport:
    """Plans of a batch of problems; `...` is the batch.

    Attributes:
        plan: (..., m, n), non-negative.
        alpha, beta: (..., m) and (..., n) potentials of rows and columns; a start for a similar problem.
        value: (...) dual value, a lower bound of the primal one; for `Unregularised` the cost.
        cost: (...) <plan, cost>. objective: (...) cost plus regularisation of this plan.
        row_error, column_error: (...) L1 distance of the plan's sums from a and b, relative to the mass.
        nonzeros: (..., n) entries of each column, or (..., m) of each row for axis "rows".
        converged: (...) whether the marginal error came below the solver's tolerance.
        iterations: (...).
    """

    plan: Tensor
    alpha: Tensor
    beta: Tensor
    value: Tensor
    cost: Tensor
    objective: Tensor
    row_error: Tensor
    column_error: Tensor
    nonzeros: Tensor
    converged: Tensor
    iterations: Tensor

    def sparse(self) -> Tensor:
        """The plan as a sparse COO tensor."""
        return self.plan.to_sparse()

    @property
    def status(self) -> str:
        """One line for a person, about the worst problem of the batch."""
        rows, columns = float(self.row_error.max()), float(self.column_error.max())
        errors = f"marginal error {rows:.2g} (rows), {columns:.2g} (columns) of the mass"
        if bool(self.converged.all()):
            return f"converged: {errors}"
        return (
            f"not converged after {int(self.iterations.max())} steps: {errors}. Where k is small the optimum often "
            "lies at a kink at which no plan with k non-zeros meets both marginals: take a larger k or gamma, or "
            "Unregularised() in the place of k = 1"
        )


def pack(
    problem: Problem,
    axis: str,
    lead: torch.Size,
    lines: Tensor,
    entry: Tensor,
    line: Tensor,
    value: Tensor,
    penalty: Tensor,
    converged: Tensor,
    iterations: Tensor,
) -> Transport:
    """Turn lines (B, n, m) and their potentials back to the user's axes.

    Args:
        entry: (B, m) and line: (B, n) potentials. value, penalty, converged, iterations: (B,).
    """
    cost = (lines * problem.cost.masked_fill(torch.isinf(problem.cost), 0.0)).sum((-1, -2))
    entry_error = (lines.sum(1) - problem.a).abs().sum(-1) / problem.mass
    line_error = (lines.sum(2) - problem.b).abs().sum(-1) / problem.mass
    columns = axis == "columns"

    def back(t: Tensor) -> Tensor:
        return t.reshape(lead + t.shape[1:])

    return Transport(
        plan=back(lines.mT if columns else lines),
        alpha=back(entry if columns else line),
        beta=back(line if columns else entry),
        value=back(value),
        cost=back(cost),
        objective=back(cost + penalty),
        row_error=back(entry_error if columns else line_error),
        column_error=back(line_error if columns else entry_error),
        nonzeros=back((lines > 0).sum(-1)),
        converged=back(converged),
        iterations=back(iterations),
    )
