"""Planning over a ReLU network to global optimality, by a mixed-integer linear program."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...errors import NumericsError, ShapeError, unknown
from .encode import BOUNDS, affine, bounds_of, encode, interval
from .folded import Array
from .problem import Obstacle, Plan, Problem
from .program import Columns, Program, blame, solve
from .transition import Box, Dynamics

GROUPS = ("state box", "obstacle", "model domain")


@dataclass(frozen=True)
class Used:
    """One round of messages in one step: inputs v, outputs y and binaries z of its ReLUs by term; the state after."""

    dynamics: Dynamics
    uses: list[tuple[Columns, Columns, Columns]]
    after: Columns


@dataclass
class Layout:
    """Where the variables of a program lie: x (T + 1, n), u (T, m), rounds per step, slacks s, faces of obstacles."""

    x: list[Columns] = field(default_factory=list)
    u: list[Columns] = field(default_factory=list)
    rounds: list[list[Used]] = field(default_factory=list)
    s: list[Columns] = field(default_factory=list)
    faces: list[list[Columns]] = field(default_factory=list)


@dataclass
class MILPPlanner:
    """Best plan over `problem.horizon` steps of a ReLU model, with a certified gap.

    Args:
        solver: "highs" (highspy; starts from a plan) or "scipy". time_limit: seconds a solve may take; then the best
            incumbent counts. gap: relative gap that counts as optimal.
        bounds: "exact", "lp" or "interval" (encode.bounds_of), computed once for the model's domain.
        safe: action where no plan exists; zero, or what the box has nearest to it.
    Source: specification 3.5; big-M form of Tjeng et al. 2019, eq. 1.
    """

    problem: Problem
    solver: str = "highs"
    time_limit: float = math.inf
    gap: float = 1e-4
    bounds: str = "exact"
    safe: Array | None = None
    _limits: dict[int, Box] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.bounds not in BOUNDS:
            raise unknown("bounds", self.bounds, BOUNDS)
        if self.safe is not None and np.shape(self.safe) != (self.problem.dynamics.actions,):
            raise ShapeError(
                f"the safe action has shape {np.shape(self.safe)}, the dynamics {self.problem.dynamics.actions} actions"
            )

    def limits(self, round_: Dynamics | None = None) -> Box:
        """Bounds of the pre-activations of a round (the first) over its domain, computed on first use."""
        dynamics = self.problem.dynamics.rounds[0] if round_ is None else round_
        if id(dynamics) not in self._limits:
            self._limits[id(dynamics)] = bounds_of(dynamics.net, dynamics.domain, self.bounds, solver=self.solver)
        return self._limits[id(dynamics)]

    def program(self, x0: Sequence[float] | Array, fixed: Array | None = None) -> tuple[Program, Layout]:
        """The program of a start; `fixed` (T, m) pins the actions."""
        problem, program, layout = self.problem, Program(), Layout()
        start = problem.start(x0)
        reach: Box = (start, start)
        layout.x.append(program.add(problem.dynamics.size, start, start))
        for t in range(problem.horizon):
            low, high = problem.u_box if fixed is None else (fixed[t], fixed[t])
            layout.u.append(program.add(problem.dynamics.actions, low, high))
            reach = self._step(program, layout, reach, (np.asarray(low, float), np.asarray(high, float)))
            layout.faces.append([_avoid(program, obstacle, layout.x[-1], reach) for obstacle in problem.obstacles])
        _costs(program, layout, problem)
        return program, layout

    def _step(self, program: Program, layout: Layout, reach: Box, u_box: Box) -> Box:
        """Rows of one step; returns a box of the states after it."""
        x, rounds = layout.x[-1], []
        for dynamics in self.problem.dynamics.rounds:
            used, reach = self._round(program, dynamics, (x, layout.u[-1]), reach, u_box)
            rounds.append(used)
            x = used.after
        layout.rounds.append(rounds)
        layout.x.append(x)
        if self.problem.x_box is not None:
            program.rows("state box", [(x, np.eye(len(x)))], *self.problem.x_box)
            reach = np.maximum(reach[0], self.problem.x_box[0]), np.minimum(reach[1], self.problem.x_box[1])
        return reach[0], np.maximum(*reach)

    def _round(
        self, program: Program, dynamics: Dynamics, columns: tuple[Columns, Columns], reach: Box, u_box: Box
    ) -> tuple[Used, Box]:
        """Rows of one round of messages from the state and the action at `columns`; a box of the state after it."""
        net, (x, u) = dynamics.net, columns
        both, n = np.concatenate([x, u]), dynamics.size
        low, high = np.concatenate([reach[0], u_box[0]]), np.concatenate([reach[1], u_box[1]])
        matrix = np.concatenate([dynamics.state, dynamics.action], 1)
        terms, offset, uses = [(both, -matrix)], np.zeros(n), []
        ends = [affine(matrix, np.zeros(n), low, high)]
        for term in dynamics.terms:
            v = program.add(net.inputs)
            program.rows("network input", [(v, np.eye(net.inputs)), (both, -term.read)], 0.0, 0.0)
            program.rows("model domain", [(v, np.eye(net.inputs))], *dynamics.domain)
            v_low, v_high = affine(term.read, np.zeros(net.inputs), low, high)
            v_low, v_high = np.maximum(v_low, dynamics.domain[0]), np.minimum(v_high, dynamics.domain[1])
            limits = interval(net, v_low, np.maximum(v_low, v_high), self.limits(dynamics))
            y, z = encode(program, net, v, limits)
            uses.append((v, y, z))
            out, bias = term.write @ net.out, term.write @ net.out_bias
            terms.append((np.concatenate([v, y]), -out))
            offset = offset + bias
            ends.append(
                affine(
                    out,
                    bias,
                    np.concatenate([v_low, np.maximum(limits[0], 0)]),
                    np.concatenate([v_high, np.maximum(limits[1], 0)]),
                )
            )
        following = program.add(n)
        program.rows("dynamics", [(following, np.eye(n)), *terms], offset, offset)
        reach = (np.sum([e[0] for e in ends], 0) - 1e-6, np.sum([e[1] for e in ends], 0) + 1e-6)
        return Used(dynamics, uses, following), reach

    def values(self, x0: Array, actions: Array, program: Program, layout: Layout) -> Array:
        """Every variable of the program under given actions (T, m): a start for the solver."""
        out = np.zeros(len(program.cost))
        x = np.asarray(x0, float)
        out[layout.x[0]] = x
        for t, u in enumerate(actions):
            out[layout.u[t]] = u
            for used in layout.rounds[t]:
                dynamics, both = used.dynamics, np.concatenate([x, u])
                x = dynamics.state @ x + dynamics.action @ u
                for term, (v, y, z) in zip(dynamics.terms, used.uses, strict=True):
                    out[v] = term.read @ both
                    a, outputs = dynamics.net.activations(out[v][None])
                    out[y] = outputs[0]
                    out[z[z >= 0]] = a[0][z >= 0] > 0
                    x = x + term.write @ dynamics.net(out[v][None])[0]
                out[used.after] = x
            for obstacle, faces in zip(self.problem.obstacles, layout.faces[t], strict=True):
                where = obstacle.read @ x
                out[faces] = np.concatenate([where <= obstacle.lower, where >= obstacle.upper])
            goal = self.problem.goal
            distance = np.maximum(np.abs(x - goal.target) - goal.free, 0) * goal.weight
            kept = distance[goal.weight > 0]
            out[layout.s[t]] = kept if goal.norm == "l1" else kept.max(initial=0.0)
        return out

    def solve(self, x0: Sequence[float] | Array, warm: Array | None = None) -> Plan:
        """The best plan from x0.

        Args:
            warm: actions (T, m) to start from, for instance those of a sampler.
        Returns:
            a plan; where time ran out without an incumbent, the warm start (with a warning); where no plan exists,
            the safe action repeated and the constraints to blame (with a warning).
        Raises:
            ConfigError, ShapeError, NumericsError: of the start or the warm start.
        """
        problem, began = self.problem, time.perf_counter()
        if warm is not None and np.shape(warm) != (problem.horizon, problem.dynamics.actions):
            raise ShapeError(
                f"the warm start has shape {np.shape(warm)}, needed ({problem.horizon}, {problem.dynamics.actions})"
            )
        if warm is not None and not np.isfinite(warm).all():
            raise NumericsError("the warm start holds NaN or infinity")
        program, layout = self.program(x0)
        start = problem.start(x0)
        guess = None if warm is None else self.values(start, np.clip(warm, *problem.u_box), program, layout)
        options: dict[str, Any] = {"solver": self.solver, "time_limit": self.time_limit}
        found = solve(program, gap=self.gap, start=guess, **options)
        status, actions = found.status, None
        causes: tuple[str, ...] = ()
        if found.x is not None:
            actions = np.stack([found.x[columns] for columns in layout.u])
        elif status == "infeasible":
            causes = _causes(program, options)
            warnings.warn(
                f"no plan satisfies the constraints ({', '.join(causes)}); the safe action is taken", stacklevel=2
            )
        else:
            status = "warm start"
            warnings.warn(f"no incumbent within {self.time_limit} s; the warm start is used", stacklevel=2)
        if actions is None:
            safe = np.zeros(problem.dynamics.actions) if self.safe is None else self.safe
            rest = np.tile(safe, (problem.horizon, 1))
            actions = rest if warm is None or status == "infeasible" else np.asarray(warm)
        actions = np.clip(actions, *problem.u_box)
        return finish(problem, start, actions, began, status, found.bound, program.binaries, causes)


def finish(
    problem: Problem,
    x0: Array,
    actions: Array,
    began: float,
    status: str,
    bound: float = -math.inf,
    binaries: int = 0,
    causes: tuple[str, ...] = (),
) -> Plan:
    """The plan of some actions, with states and cost by the model itself."""
    with torch.no_grad():
        cost, outside, states = problem.evaluate(x0, torch.from_numpy(actions)[None])
    return Plan(
        actions,
        states[0].numpy(),
        float(cost[0]),
        bound,
        status,
        time.perf_counter() - began,
        float(outside[0]),
        binaries,
        causes,
    )


def _causes(program: Program, options: dict[str, Any]) -> tuple[str, ...]:
    """Constraints to blame; the domain stands for the rest, since the network means nothing outside it."""
    return tuple(blame(program, GROUPS[:2], **options)) or ("model domain",)


def _avoid(program: Program, obstacle: Obstacle, x: Columns, reach: Box) -> Columns:
    """One binary per face, at least one set, each of which holds read @ x beyond its face."""
    low, high = affine(obstacle.read, np.zeros(len(obstacle.read)), *reach)
    size = len(low)
    below, above = program.add(size, 0, 1, integer=True), program.add(size, 0, 1, integer=True)
    room, rise = np.maximum(high - obstacle.lower, 0), np.maximum(obstacle.upper - low, 0)
    program.rows("obstacle", [(x, obstacle.read), (below, np.diag(room))], -np.inf, obstacle.lower + room)
    program.rows("obstacle", [(x, obstacle.read), (above, -np.diag(rise))], obstacle.upper - rise, np.inf)
    program.rows("obstacle", [(np.concatenate([below, above]), np.ones((1, 2 * size)))], 1.0, np.inf)
    return np.concatenate([below, above])


def _costs(program: Program, layout: Layout, problem: Problem) -> None:
    goal, used = problem.goal, np.flatnonzero(problem.goal.weight > 0)
    for factor, x in zip(goal.factors(problem.horizon), layout.x[1:], strict=True):
        count = len(used) if goal.norm == "l1" else 1
        s = program.add(count, 0.0, np.inf, factor)
        spread = np.eye(len(used)) if goal.norm == "l1" else np.ones((len(used), 1))
        weights = np.diag(goal.weight[used])
        target, free = goal.weight[used] * goal.target[used], goal.weight[used] * goal.free[used]
        program.rows("cost", [(s, spread), (x[used], -weights)], -target - free, np.inf)
        program.rows("cost", [(s, spread), (x[used], weights)], target - free, np.inf)
        layout.s.append(s)
