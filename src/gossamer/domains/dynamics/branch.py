"""A branch and bound of our own on the ReLUs of a planning program: short, for teaching and as a check."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linprog

from .folded import Array
from .planner import Layout, MILPPlanner, finish
from .problem import Plan
from .program import Program

TOLERANCE = 1e-7


@dataclass
class Trace:
    """Lower bound and incumbent after every node."""

    bounds: list[float] = field(default_factory=list)
    incumbents: list[float] = field(default_factory=list)


def branch_and_bound(
    planner: MILPPlanner,
    x0: Sequence[float] | Array,
    *,
    gap: float = 1e-6,
    time_limit: float = math.inf,
    trace: Trace | None = None,
) -> Plan:
    """Best-first search over activation patterns, linear relaxations by HiGHS (specification 3.6).

    Branches on the ReLU that a relaxation violates most; the relaxed actions, rolled forward through the network,
    give an upper bound at every node for free.

    Returns:
        the plan; status "optimal", "limit", or "infeasible".
    """
    began, problem = time.perf_counter(), planner.problem
    program, layout = planner.program(x0)
    start = problem.start(x0)
    relaxed = _Relaxation(program, layout, planner)
    best, plan = math.inf, None
    tick = itertools.count()
    heap: list[tuple[float, int, dict[int, int]]] = [(-math.inf, next(tick), {})]
    lower, status = -math.inf, "optimal"
    while heap:
        floor, _, fixed = heapq.heappop(heap)
        lower = max(lower, min(floor, best))
        if floor >= best - gap * max(1.0, abs(best)):
            break
        if time.perf_counter() - began > time_limit:
            status = "limit"
            break
        value, x = relaxed.solve(fixed)
        if x is not None and value < best:
            actions = np.clip(np.stack([x[c] for c in layout.u]), *problem.u_box)
            with torch.no_grad():
                cost, outside, _ = problem.evaluate(start, torch.from_numpy(actions)[None])
            if float(outside[0]) <= TOLERANCE and float(cost[0]) < best:
                best, plan = float(cost[0]), actions
            branch = relaxed.worst(x, fixed)
            if branch is None:
                if value < best:
                    best, plan = value, actions
            else:
                for side in (0, 1):
                    heapq.heappush(heap, (max(value, floor), next(tick), {**fixed, branch: side}))
        if trace is not None:
            trace.bounds.append(min([best, *(node[0] for node in heap)]))
            trace.incumbents.append(best)
    if plan is None:
        idle = np.clip(np.zeros((problem.horizon, problem.dynamics.actions)), *problem.u_box)
        return finish(problem, start, idle, began, "infeasible" if status == "optimal" else status, lower)
    bound = best if not heap else min(best, max(lower, -math.inf))
    return finish(problem, start, plan, began, status, bound, program.binaries)


class _Relaxation:
    """The linear relaxation of a planning program under fixed binaries."""

    def __init__(self, program: Program, layout: Layout, planner: MILPPlanner) -> None:
        lower, upper = program.limits()
        matrix = program.matrix()
        equal, above, below = lower == upper, np.isfinite(upper) & (lower != upper), np.isfinite(lower)
        below &= ~equal
        self.cost = np.array(program.cost)
        self.box = np.array([program.lower, program.upper]).T
        self.equal, self.equal_to = matrix[np.flatnonzero(equal)], lower[equal]
        from scipy import sparse

        parts = [matrix[np.flatnonzero(above)], -matrix[np.flatnonzero(below)]]
        self.under, self.under_to = sparse.vstack(parts, format="csr"), np.concatenate([upper[above], -lower[below]])
        rounds = [used for step in layout.rounds for used in step]
        self.uses = [(used.dynamics.net, *use) for used in rounds for use in used.uses]
        known = {int(c) for _, _, _, z in self.uses for c in z[z >= 0]}
        self.others = [c for c in np.flatnonzero(program.integer).tolist() if c not in known]

    def solve(self, fixed: dict[int, int]) -> tuple[float, Array | None]:
        """Value and solution; (inf, None) where infeasible."""
        limits = self.box.copy()
        for column, side in fixed.items():
            limits[column] = side
        found = linprog(self.cost, self.under, self.under_to, self.equal, self.equal_to, limits, method="highs")
        return (float(found.fun), found.x) if found.x is not None and found.status == 0 else (math.inf, None)

    def worst(self, x: Array, fixed: dict[int, int]) -> int | None:
        """The free binary whose ReLU is violated most, else the most fractional other one; None where all hold."""
        best, column = TOLERANCE, None
        for net, v, y, z in self.uses:
            a = net.pre @ np.concatenate([x[v], x[y]]) + net.pre_bias
            violation = np.abs(x[y] - np.maximum(a, 0))
            for k in np.flatnonzero(z >= 0):
                if violation[k] > best and int(z[k]) not in fixed:
                    best, column = float(violation[k]), int(z[k])
        if column is None:
            for other in self.others:
                fraction = min(x[other], 1 - x[other])
                if fraction > best and other not in fixed:
                    best, column = fraction, other
        return column
