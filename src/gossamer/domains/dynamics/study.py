"""The tasks behind `gossamer dynamics`: discs to push, a rope to lay, granules to gather, objects to sort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import ConfigError, unknown
from .control import MPC, Episode, Planner
from .folded import Array
from .graph import GraphNetwork
from .learning import Data
from .model import Gated, GatedReLUMLP
from .particles import Particles
from .planner import MILPPlanner
from .problem import Goal, Problem
from .sampling import MPPI, PLANNERS
from .systems import Pushing

SYSTEMS: dict[str, Pushing | Particles] = {
    "push": Pushing(),
    "rope": Particles("rope", 4, spacing=0.25),
    "pile": Particles("pile", 4, reach=0.35, placed=True),
}
TASKS = {"push": "push", "rope": "rope", "gather": "pile", "sort": "pile"}  # and the system of each
METHODS = ("milp", *PLANNERS)


@dataclass(frozen=True)
class Scene:
    """A task: what to plan, where it begins, how the true system moves, and what a picture of it shows.

    Args:
        problem, start, step: see Problem and MPC. bodies: whose centres the first entries of the state are.
        radius: of a drawn body. links: pairs that are drawn joined. classes: of each body, for its colour.
        placed: the tool is no part of the state; an action is where it comes down, and its stroke.
    """

    problem: Problem
    start: Array
    step: Callable[[Array, Array], Array]
    bodies: int
    radius: float
    links: tuple[tuple[int, int], ...] = ()
    classes: tuple[int, ...] = field(default=())
    placed: bool = False

    def distances(self, states: Array) -> Array:
        """Goal distance of each of the states (N, n), as planners count it, without weights of the horizon."""
        goal = self.problem.goal
        away = np.maximum(np.abs(states - goal.target) - goal.free, 0) * goal.weight
        result: Array = away.sum(1) if goal.norm == "l1" else away.max(1)
        return result

    def arrived(self, state: Array, tolerance: float = 0.05) -> int:
        """Bodies that are at their goal, or in their region, up to a tolerance per axis."""
        goal, n = self.problem.goal, 2 * self.bodies
        away = np.abs(state - goal.target)[:n] - goal.free[:n]
        return int((away.reshape(-1, 2).max(1) <= tolerance).sum())


def model_for(system: str, hidden: Sequence[int] | None = None) -> Gated:
    """An untrained model of a system: a perceptron for pushing, else a graph network.

    Args:
        hidden: widths of the network that the tool acts by; None: 24 and 24 for pushing, else 16 and 16.
    Raises:
        ConfigError: an unknown system.
    """
    chosen = system_of(system)
    if isinstance(chosen, Pushing):
        return GatedReLUMLP([4, *(hidden or (24, 24)), 2])
    return chosen.network(tuple(hidden or (16, 16)))


def system_of(name: str) -> Pushing | Particles:
    """A system by name. Raises ConfigError."""
    if name not in SYSTEMS:
        raise unknown("system", name, SYSTEMS)
    return SYSTEMS[name]


def data_for(system: str, count: int, seed: int) -> tuple[Data, Data]:
    """`count` training samples of a system and an eighth as many for testing."""
    chosen = system_of(system)
    return chosen.data(count, 2 * seed + 1), chosen.data(max(1, count // 8), 2 * seed + 10_001)


def scene(task: str, model: Gated, objects: int = 1, horizon: int | None = None, seed: int = 0) -> Scene:
    """The scene of a task with the learned dynamics of a model.

    Args:
        objects: discs, for "push" only. horizon: None: 4 for "push", 2 for "rope", else 1. seed: of what lies where.
    Raises:
        ConfigError: an unknown task, or a model of another system.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if task == "push":
        return _push(model, objects, horizon or 4)
    system = SYSTEMS[TASKS[task]]
    assert isinstance(system, Particles)
    if not isinstance(model, GraphNetwork) or model.widths[0] != system.size + len(system.u_box[0]):
        raise ConfigError(f"the task {task!r} needs a model of the system {TASKS[task]!r}")
    start, goal = (_rope if task == "rope" else _gather if task == "gather" else _sort)(system, seed)
    problem = Problem(model.dynamics(), horizon or (2 if task == "rope" else 1), system.u_box, goal)
    links = tuple(system.pairs) if system.kind == "rope" else ()
    classes = tuple(_classes(system.bodies)) if task == "sort" else (0,) * system.bodies
    radius = 0.05 if system.kind == "rope" else system.spacing / 2
    return Scene(problem, start, system.step, system.bodies, radius, links, classes, system.placed)


def closed_loops(
    shown: Scene, planners: Sequence[str] | None = None, limit: float = 4.0, steps: int = 9, seed: int = 0
) -> dict[str, Episode]:
    """Closed loops in the true simulator, by planner.

    Args:
        planners: of "milp", "mppi", "cem", "gradient"; None: all. The first is guided by MPPI.
        limit: seconds of a mixed-integer solve. steps: of the loop. seed: of the samplers.
    """
    found: dict[str, Episode] = {}
    for name in planners or METHODS:
        if name not in METHODS:
            raise unknown("planner", name, METHODS)
        guide = MPPI(shown.problem, seed=seed)
        planner: Planner = (
            MILPPlanner(shown.problem, time_limit=limit, gap=1e-3, bounds="lp")
            if name == "milp"
            else PLANNERS[name](shown.problem, seed=seed)
        )
        loop = MPC(planner, guide if name == "milp" else None)
        found[name] = loop.run(shown.step, shown.start, steps)
    return found


def _push(model: Gated, objects: int, horizon: int) -> Scene:
    """Discs in a column are to go right by 0.35; the pusher begins on their right, so it must go round."""
    if not isinstance(model, GatedReLUMLP) or (model.widths[0], model.widths[-1]) != (4, 2):
        raise ConfigError(f"pushing needs a perceptron of 4 inputs and 2 outputs, got {model.widths}")
    system = Pushing(objects)
    discs = np.stack([np.zeros(objects), 0.7 * (np.arange(objects) - (objects - 1) / 2)], 1)
    start = np.concatenate([discs.ravel(), [0.4, 0.05]])
    target = np.concatenate([(discs + np.array([0.35, 0.0])).ravel(), [0.0, 0.0]])
    weight = np.concatenate([np.ones(2 * objects), np.zeros(2)])
    problem = Problem(system.dynamics(model), horizon, system.u_box, Goal(target, weight))
    return Scene(problem, start, system.step, objects, system.radius, classes=tuple(range(objects)))


def _rope(system: Particles, seed: int) -> tuple[Array, Goal]:
    """A straight rope is to be bent as pushes from below would bend it; the tool begins beside its right end."""
    n = system.bodies
    along = system.spacing * 0.95 * (np.arange(n) - (n - 1) / 2)
    bodies = np.stack([along, np.zeros(n)], 1).ravel()
    x = np.concatenate([bodies, [0.06, -0.2]])
    for step in ((0.0, 0.2), (-0.05, 0.15)):
        x = system.step(x, np.array(step))
    start = np.concatenate([bodies, [0.25, -0.25]])
    weight = np.concatenate([np.ones(2 * n), np.zeros(2)])
    return start, Goal(x, weight)


def _gather(system: Particles, seed: int) -> tuple[Array, Goal]:
    """Granules are to lie within 0.2 of the middle, per axis."""
    return _scattered(system, seed), Goal(np.zeros(system.size), np.ones(system.size), band=np.full(system.size, 0.2))


def _sort(system: Particles, seed: int) -> tuple[Array, Goal]:
    """Objects of two classes, mixed, are to lie left or right of the middle, each class in its own region."""
    side = np.where(np.array(_classes(system.bodies)) == 0, -0.5, 0.5)
    target = np.stack([side, np.zeros(system.bodies)], 1).ravel()
    band = np.tile([0.25, 0.6], system.bodies)
    return _scattered(system, seed), Goal(target, np.ones(system.size), band=band)


def _classes(bodies: int) -> list[int]:
    return [body % 2 for body in range(bodies)]


def _scattered(system: Particles, seed: int) -> Array:
    """Bodies apart from each other around the middle."""
    rng = np.random.default_rng(seed)
    while True:
        q = rng.uniform(-0.55, 0.55, (system.bodies, 2))
        gaps = [np.linalg.norm(q[i] - q[j]) for i, j in system.pairs]
        if min(gaps) > 1.5 * system.spacing:
            return q.ravel()
