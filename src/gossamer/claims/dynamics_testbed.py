"""The disc-pushing testbed of sparse neural dynamics: a ladder of models, planned costs, closed loops."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.domains.dynamics import (
    CEM,
    MPC,
    MPPI,
    Budget,
    GatedReLUMLP,
    Goal,
    GradientPlanner,
    Ladder,
    MILPPlanner,
    Problem,
    Pushing,
    fit,
    magnitude,
    rmse,
    sparsify,
)
from gossamer.domains.dynamics.learning import Data

RELUS, WIDTHS, STEPS = 12, (4, 24, 24, 2), 3000
BUDGET = Budget(gates=500, settle=150, tune=4000)
ARMS = ("dense", "gates", "magnitude", "once", "small")
SYSTEM = Pushing()


def _random(model: GatedReLUMLP, data: Data) -> Tensor:
    return torch.rand(len(model.states), generator=torch.Generator().manual_seed(0))


def _train(arm: str, seed: int, mutant: str | None) -> dict[str, Any]:
    data, test = SYSTEM.data(40_000, 2 * seed + 1), SYSTEM.data(5_000, 2 * seed + 10_001)
    torch.manual_seed(seed)
    widths = (4, RELUS // 2, RELUS // 2, 2) if arm == "small" else WIDTHS
    model = fit(GatedReLUMLP(widths), data, STEPS, seed=seed)
    if arm in ("dense", "small"):
        fit(model, data, BUDGET.total(6), seed=seed + 500, standardise=False)
    else:
        rank = magnitude if arm in ("magnitude", "once") else _random if mutant == "random_neurons" else None
        ladder, budget = (Ladder(1), Budget(0, 0, BUDGET.total(6))) if arm == "once" else (Ladder(), BUDGET)
        model = sparsify(model, data, RELUS, schedule=ladder, budget=budget, seed=seed, rank=rank)  # type: ignore[arg-type]
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    return {"rmse": rmse(model, test), "deviation": float(test[1].std()), "widths": list(widths), "state": state,
            **model.counts()}  # fmt: skip


def row(arm: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """One trained model: test "rmse", "deviation" of the targets, neurons by state, and its weights; cached."""

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(arm, seed, mutant)

    fault = mutant if mutant == "random_neurons" and arm == "gates" else None
    return cell("gossamer.claims.dynamics_testbed", {"arm": arm, "seed": seed, "mutant": fault}, compute)


def model_of(found: dict[str, Any]) -> GatedReLUMLP:
    """The model of a row."""
    model = GatedReLUMLP(found["widths"])
    kept = model.state_dict()
    model.load_state_dict({name: torch.tensor(value, dtype=kept[name].dtype) for name, value in found["state"].items()})
    return model


def problem_of(found: dict[str, Any], horizon: int, goal: float = 0.35) -> Problem:
    """Push the disc from the origin to (goal, 0): summed L1 distance."""
    target, weight = np.array([goal, 0.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0])
    return Problem(SYSTEM.dynamics(model_of(found)), horizon, SYSTEM.u_box, Goal(target, weight))


def starts(seed: int, count: int, wrong_side: bool) -> list[np.ndarray[Any, Any]]:
    """Starts with the disc at the origin, and the pusher between it and the goal, or anywhere around it."""
    rng = np.random.default_rng([seed, int(wrong_side)])
    found: list[np.ndarray[Any, Any]] = []
    for _ in range(count):
        angle = rng.uniform(-0.35, 0.35) if wrong_side else rng.uniform(-np.pi, np.pi)
        found.append(np.array([0.0, 0.0, *(rng.uniform(0.34, 0.45) * np.array([np.cos(angle), np.sin(angle)]))]))
    return found


@cache
def planner_of(arm: str, seed: int, horizon: int, limit: float, bounds: str = "exact") -> MILPPlanner:
    """The planner on a model of the ladder; its bounds are computed once."""
    planner = MILPPlanner(problem_of(row(arm, seed), horizon), time_limit=limit, gap=1e-3, bounds=bounds)
    planner.limits()
    return planner


def planned(seed: int, start: Any, limit: float, equal_time: bool, mutant: str | None) -> dict[str, float]:
    """Cost of the plans of all planners from a start, T = 4, on the same sparse model."""
    planner = planner_of("gates", seed, 4, limit)
    problem = planner.problem
    guide = MPPI(problem, seed=seed).solve(start)
    plan = guide if mutant == "no_search" else planner.solve(start, guide.actions)
    seconds = plan.seconds if equal_time else 0.0
    rivals = {"mppi": MPPI, "cem": CEM, "gradient": GradientPlanner}
    costs = {name: kind(problem, seed=seed, seconds=seconds).solve(start).cost for name, kind in rivals.items()}
    return {"milp": plan.cost, **costs, "seconds": plan.seconds, "gap": min(plan.gap, 1.0)}


def closed_loop(seed: int, limit: float, steps: int = 9) -> dict[str, float]:
    """Final distance to the goal in the true simulator, for every planner, from one start on the wrong side."""
    start = starts(100 + seed, 1, True)[0]
    planner = copy.copy(planner_of("gates", seed, 4, limit))
    problem = planner.problem
    dense = problem_of(row("dense", seed), 4)
    loops = {
        "milp": MPC(planner, guide=MPPI(problem, seed=seed)),
        "mppi": MPC(MPPI(problem, seed=seed)),
        "cem": MPC(CEM(problem, seed=seed)),
        "gradient": MPC(GradientPlanner(problem, seed=seed)),
        "dense mppi": MPC(MPPI(dense, seed=seed)),
    }
    goal = problem.goal.target[:2]
    ends = {name: loop.run(SYSTEM.step, start, steps).states[-1, :2] for name, loop in loops.items()}
    return {name: float(np.linalg.norm(end - goal)) for name, end in ends.items()}
