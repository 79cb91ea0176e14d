"""A mixed-integer linear program in rows with names, and HiGHS to solve it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from ...errors import ConfigError, MissingExtra, NumericsError, unknown
from ...runs.files import atomic
from .folded import Array

Columns = NDArray[np.int64]
SOLVERS = ("highs", "scipy")


@dataclass
class Program:
    """min c'x subject to lo <= A x <= hi, bounds, and some x integer. Every row belongs to a named group."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    blocks: list[sparse.csr_matrix] = field(default_factory=list)
    row_lower: list[Array] = field(default_factory=list)
    row_upper: list[Array] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    @property
    def binaries(self) -> int:
        return sum(self.integer)

    def add(
        self, count: int, lower: Any = -math.inf, upper: Any = math.inf, cost: Any = 0.0, integer: bool = False
    ) -> Columns:
        """Append `count` variables; scalars broadcast. Returns their columns."""
        first = len(self.cost)
        for store, value in ((self.lower, lower), (self.upper, upper), (self.cost, cost)):
            store.extend(np.broadcast_to(np.asarray(value, float), count).tolist())
        self.integer.extend([integer] * count)
        return np.arange(first, first + count)

    def rows(self, group: str, terms: Sequence[tuple[Columns, Array]], lower: Any, upper: Any) -> None:
        """Append lower <= sum of matrix @ variables <= upper; each matrix is (rows, columns)."""
        count = len(terms[0][1])
        columns = np.concatenate([np.tile(cols, count) for cols, _ in terms])
        rows = np.concatenate([np.repeat(np.arange(count), len(cols)) for cols, _ in terms])
        values = np.concatenate([np.asarray(matrix, float).ravel() for _, matrix in terms])
        kept = values != 0
        block = sparse.coo_matrix((values[kept], (rows[kept], columns[kept])), shape=(count, len(self.cost)))
        self.blocks.append(block.tocsr())
        self.row_lower.append(np.broadcast_to(np.asarray(lower, float), count).copy())
        self.row_upper.append(np.broadcast_to(np.asarray(upper, float), count).copy())
        self.groups.extend([group] * count)

    def matrix(self) -> sparse.csr_matrix:
        """All rows over all variables."""
        width = len(self.cost)
        for block in self.blocks:
            block.resize(block.shape[0], width)
        return sparse.vstack(self.blocks, format="csr") if self.blocks else sparse.csr_matrix((0, width))

    def limits(self) -> tuple[Array, Array]:
        none = np.zeros(0)
        return np.concatenate([none, *self.row_lower]), np.concatenate([none, *self.row_upper])

    def without(self, group: str) -> Program:
        """The same program with the rows of a group set free."""
        free = [np.array([g == group for g in self.groups])]
        lower, upper = self.limits()
        lower, upper = np.where(free[0], -np.inf, lower), np.where(free[0], np.inf, upper)
        blocks = [self.matrix()]
        return Program(self.cost, self.lower, self.upper, self.integer, blocks, [lower], [upper], self.groups)


@dataclass(frozen=True)
class Found:
    """What a solver returned: status "optimal", "limit" or "infeasible"; x None where there is no incumbent.

    `nodes` counts those of branch and bound.
    """

    status: str
    x: Array | None
    objective: float
    bound: float
    nodes: int = 0


def solve(
    program: Program,
    *,
    solver: str = "highs",
    time_limit: float = math.inf,
    gap: float = 1e-6,
    start: Array | None = None,
) -> Found:
    """Solve with HiGHS, through highspy ("highs": takes a start) or scipy.optimize.milp ("scipy": does not).

    Args:
        time_limit: seconds. gap: relative, at which the incumbent counts as optimal.
    Raises:
        MissingExtra: highspy is absent. ConfigError: an unknown solver. NumericsError: the solver failed.
    """
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if not time_limit > 0:
        raise ConfigError(f"time_limit={time_limit}: seconds above 0 are needed")
    return (_highs if solver == "highs" else _scipy)(program, time_limit, gap, start)


def _scipy(program: Program, time_limit: float, gap: float, start: Array | None) -> Found:
    lower, upper = program.limits()
    options: dict[str, Any] = {"mip_rel_gap": gap}
    if math.isfinite(time_limit):
        options["time_limit"] = time_limit
    rows = LinearConstraint(program.matrix(), lower, upper) if len(lower) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the versions warns of a gap at the limit
        done = milp(
            np.array(program.cost),
            integrality=np.array(program.integer, int),
            constraints=rows,
            bounds=Bounds(np.array(program.lower), np.array(program.upper)),
            options=options,
        )
    status = {0: "optimal", 1: "limit", 2: "infeasible"}.get(done.status)
    if status is None:
        raise NumericsError(f"scipy.optimize.milp failed: {done.message}")
    bound = getattr(done, "mip_dual_bound", None)
    value = math.inf if done.x is None else float(done.fun)
    bound = value if bound is None and status == "optimal" else -math.inf if bound is None else float(bound)
    return Found(status, done.x, value, bound, int(getattr(done, "mip_node_count", None) or 0))


def _loaded(program: Program) -> Any:
    try:
        import highspy
    except ImportError as error:
        raise MissingExtra("highspy", "dynamics") from error
    matrix, (lower, upper), lp = program.matrix().tocsc(), program.limits(), highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.cost), len(lower)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = (
        np.array(v, float) for v in (program.cost, program.lower, program.upper)
    )
    lp.row_lower_, lp.row_upper_ = lower, upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    if program.binaries:
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in program.integer]

    class Silent(highspy.Highs):  # type: ignore[misc, unused-ignore]
        def enableCallbacks(self) -> None:  # noqa: N802 - highspy's name; it would print a banner to stdout
            self.silent()
            super().enableCallbacks()

    model = Silent()
    model.passModel(lp)
    return model


def _highs(program: Program, time_limit: float, gap: float, start: Array | None) -> Found:
    model = _loaded(program)
    import highspy

    model.setOptionValue("threads", 1)
    model.setOptionValue("mip_rel_gap", gap)
    if math.isfinite(time_limit):
        model.setOptionValue("time_limit", time_limit)
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = list(map(float, start))
        model.setSolution(solution)
    model.run()
    kinds, status, info = highspy.HighsModelStatus, model.getModelStatus(), model.getInfo()
    names = {
        kinds.kOptimal: "optimal",
        kinds.kTimeLimit: "limit",
        kinds.kInfeasible: "infeasible",
        kinds.kUnboundedOrInfeasible: "infeasible",
    }
    if status not in names:
        raise NumericsError(f"HiGHS failed: {model.modelStatusToString(status)}")
    has = info.primal_solution_status == 2
    value = float(info.objective_function_value) if has else math.inf
    bound = float(info.mip_dual_bound) if program.binaries else value if names[status] == "optimal" else -math.inf
    x = np.array(model.getSolution().col_value) if has else None
    return Found(names[status], x, value, bound, max(0, int(info.mip_node_count)))


def write(program: Program, path: str | Path) -> Path:
    """Write the program as .lp or .mps, which every solver reads.

    Raises:
        ConfigError: another ending. MissingExtra: highspy is absent.
    """
    path = Path(path)
    if path.suffix not in (".lp", ".mps"):
        raise ConfigError(f"{path} must end in .lp or .mps")
    model = _loaded(program)
    with atomic(path) as temporary:
        written = temporary.with_name(temporary.name + path.suffix)
        model.writeModel(str(written))
        written.replace(temporary)
    return path


def blame(program: Program, groups: Sequence[str], **options: Any) -> list[str]:
    """The groups each of which, set free alone, makes an infeasible program feasible."""
    present = [group for group in groups if group in program.groups]
    return [group for group in present if solve(program.without(group), **options).x is not None]
