"""The receding horizon: plan, act, look, plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...errors import ConfigError
from .folded import Array
from .problem import Plan


class Planner(Protocol):
    """Anything that plans from a state, given a first guess of the actions."""

    def solve(self, x0: Sequence[float] | Array, warm: Array | None = None) -> Plan: ...


@dataclass(frozen=True)
class Episode:
    """States (N + 1, n) that came about, actions (N, m) taken, and the plan behind each solve."""

    states: Array
    actions: Array
    plans: tuple[Plan, ...]


@dataclass
class MPC:
    """Closed-loop control with any planner.

    Args:
        planner: solves every time. guide: a sampler whose plan starts the planner, or None (the rest of the last plan
            starts it). hold: actions taken of each plan.
    """

    planner: Planner
    guide: Planner | None = None
    hold: int = 1

    def run(self, step: Callable[[Array, Array], Array], x0: Sequence[float] | Array, steps: int) -> Episode:
        """Control the system `step(x, u) -> x'` for `steps` steps from x0."""
        if steps < 1 or self.hold < 1:
            raise ConfigError(f"steps={steps}, hold={self.hold}: both must be >= 1")
        states = [np.asarray(x0, float)]
        actions: list[Array] = []
        plans: list[Plan] = []
        warm: Array | None = None
        while len(actions) < steps:
            if self.guide is not None:
                warm = self.guide.solve(states[-1], warm).actions
            plan = self.planner.solve(states[-1], warm)
            plans.append(plan)
            taken = plan.actions[: min(self.hold, steps - len(actions))]
            for u in taken:
                actions.append(u)
                states.append(step(states[-1], u))
            rest = plan.actions[len(taken) :]
            warm = np.concatenate([rest, np.zeros((len(taken), plan.actions.shape[1]))])
        return Episode(np.stack(states), np.stack(actions), tuple(plans))
