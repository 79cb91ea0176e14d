"""Pushing discs to their goals with any planners: the task behind `gossamer dynamics run`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import ConfigError, unknown
from .control import MPC, Episode, Planner
from .folded import Array
from .model import GatedReLUMLP
from .planner import MILPPlanner
from .problem import Goal, Problem
from .sampling import MPPI, PLANNERS
from .systems import Pushing


def task(model: GatedReLUMLP, objects: int = 1, horizon: int = 4) -> tuple[Problem, Array]:
    """Discs in a column are to go right by 0.35; the pusher begins on their right, so it must go round.

    Returns:
        the problem and the start.
    """
    if (model.widths[0], model.widths[-1]) != (4, 2):
        raise ConfigError(f"pushing needs a model of 4 inputs and 2 outputs, got {model.widths[0]}, {model.widths[-1]}")
    system = Pushing(objects)
    discs = np.stack([np.zeros(objects), 0.7 * (np.arange(objects) - (objects - 1) / 2)], 1)
    start = np.concatenate([discs.ravel(), [0.4, 0.05]])
    target = np.concatenate([(discs + np.array([0.35, 0.0])).ravel(), [0.0, 0.0]])
    weight = np.concatenate([np.ones(2 * objects), np.zeros(2)])
    return Problem(system.dynamics(model), horizon, system.u_box, Goal(target, weight)), start


def push(model: GatedReLUMLP, objects: int = 1, planners: Sequence[str] | None = None, horizon: int = 4,
         limit: float = 4.0, steps: int = 9, seed: int = 0) -> tuple[dict[str, Episode], Array, float]:  # fmt: skip
    """Closed loops in the true simulator, by planner; the target of the states; the radius of the discs.

    Args:
        planners: of "milp", "mppi", "cem", "gradient"; None: all.
        limit: seconds of a mixed-integer solve. steps: of the loop. seed: of the samplers.
    """
    problem, start = task(model, objects, horizon)
    system = Pushing(objects)
    episodes: dict[str, Episode] = {}
    for name in planners or ("milp", *PLANNERS):
        if name not in ("milp", *PLANNERS):
            raise unknown("planner", name, ("milp", *PLANNERS))
        guide = MPPI(problem, seed=seed)
        planner: Planner = (
            MILPPlanner(problem, time_limit=limit, gap=1e-3) if name == "milp" else PLANNERS[name](problem, seed=seed)
        )
        loop = MPC(planner, guide if name == "milp" else None)
        episodes[name] = loop.run(system.step, start, steps)
    return episodes, problem.goal.target, system.radius
