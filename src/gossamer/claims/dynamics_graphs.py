"""The graph-network testbed of sparse neural dynamics: a rope to bend, objects to sort."""

from __future__ import annotations

import copy
from typing import Any

import torch

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.domains.dynamics import Budget, Ladder, fit, rmse, sparsify
from gossamer.domains.dynamics.model import Gated
from gossamer.domains.dynamics.study import closed_loops, data_for, model_for, scene

STEPS, SAMPLES, BUDGET = 600, 8_000, Budget(gates=100, settle=30, tune=600)
KEEP = {"rope": 16, "pile": 20}  # of 44 ReLUs
TASKS = {"rope": "rope", "pile": "sort"}


def _train(system: str, seed: int) -> dict[str, Any]:
    data, test = data_for(system, SAMPLES, seed)
    torch.manual_seed(seed)
    base = fit(model_for(system), data, STEPS, seed=seed)
    dense = fit(copy.deepcopy(base), data, BUDGET.total(Ladder().stages), seed=seed + 500, standardise=False)
    sparse = sparsify(base, data, KEEP[system], budget=BUDGET, seed=seed)
    state = {name: value.tolist() for name, value in sparse.state_dict().items()}
    return {
        "deviation": float(test[1].square().mean().sqrt()),
        "dense rmse": rmse(dense, test),
        "sparse rmse": rmse(sparse, test),
        "relus": sparse.relus,
        "state": state,
    }


def graph_row(system: str, seed: int) -> dict[str, Any]:
    """A dense and a sparse graph network of a system: test errors, and the weights of the sparse one; cached."""

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(system, seed)

    return cell("gossamer.claims.dynamics_graphs", {"system": system, "seed": seed}, compute)


def graph_model(system: str, seed: int) -> Gated:
    """The sparse model of a row."""
    model = model_for(system)
    kept = model.state_dict()
    state = graph_row(system, seed)["state"]
    model.load_state_dict({name: torch.tensor(value, dtype=kept[name].dtype) for name, value in state.items()})
    return model


def graph_loop(system: str, seed: int, limit: float = 2.0, steps: int = 5) -> dict[str, float]:
    """Goal cost in the true simulator at the end of closed loops by planner, and at the start."""
    shown = scene(TASKS[system], graph_model(system, seed), seed=seed)
    with one_thread():
        episodes = closed_loops(shown, None, limit, steps, seed)
    found = {f"{system} start": float(shown.distances(shown.start[None])[0])}
    found |= {f"{system} {name}": float(shown.distances(e.states[-1:])[0]) for name, e in episodes.items()}
    plans = episodes["milp"].plans
    return found | {f"{system} solved": sum(plan.status == "optimal" for plan in plans) / len(plans)}
