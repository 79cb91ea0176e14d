"""Small problems whose answer is known by enumeration: a grid with modes, Pareto fronts, words, substituted benzenes.

Larger is better in every objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, unknown
from ..slots import OneOf
from ..space import SearchSpace
from .envs import Env, HyperGrid, Sequences, SlotFill
from .order import non_dominated
from .train import Training


def ring(points: Tensor) -> Tensor:
    """Which points (n, d) of the unit cube lie in a mode of `four_modes`."""
    away = (points - 0.5).abs()
    return ((away > 0.3) & (away < 0.4)).all(1)


def four_modes(points: Tensor) -> Tensor:
    """1e-3, plus 1/2 in the corners, plus 2 in their rings (Bengio et al. 2021)."""
    away = (points - 0.5).abs()
    return 1e-3 + 0.5 * (away > 0.25).all(1).double() + 2 * ring(points).double()


def branin(points: Tensor) -> Tensor:
    """(n,) in about [0, 1] of points in [0, 1]^2."""
    a, b = 15 * points[:, 0].double() - 5, 15 * points[:, 1].double()
    first = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return 1 - (first**2 + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10) / 308.13


def currin(points: Tensor) -> Tensor:
    """(n,) in about [0, 1] of points in [0, 1]^2."""
    x, y = points.double().unbind(1)
    above = (1 - torch.exp(-1 / (2 * y + 1e-10))) * (2300 * x**3 + 1900 * x**2 + 2092 * x + 60)
    return above / (100 * x**3 + 500 * x**2 + 4 * x + 20) / 13.77


def beale(points: Tensor) -> Tensor:
    """(n,) in about [0, 1] of points in [0, 1]^2."""
    x, y = (2 * points.double() - 1).unbind(1)
    return ((1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2) / 38.8


def shubert(points: Tensor) -> Tensor:
    """(n,) in about [0, 1] of points in [0, 1]^2."""
    u, v = (-1.5 * (2 * points.double() - 1)).unbind(1)
    first, second = (torch.stack([i * torch.cos((i + 1) * axis + i) for i in range(1, 6)]).sum(0) for axis in (u, v))
    return (first * second + 186.8) / 397


OBJECTIVES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "branin": branin, "currin": currin, "beale": beale, "shubert": shubert,
}  # fmt: skip

# Constants of substituents on benzene: hydrophobicity pi, and electron withdrawal sigma in meta and in para position.
# Source: Hansch, Leo & Taft 1991, Chem. Rev. 91, 165 (sigma); Hansch & Leo 1979 (pi).
SUBSTITUENTS: Mapping[str, tuple[float, float, float]] = {
    "H": (0.00, 0.00, 0.00),
    "CH3": (0.56, -0.07, -0.17),
    "C2H5": (1.02, -0.07, -0.15),
    "CF3": (0.88, 0.43, 0.54),
    "F": (0.14, 0.34, 0.06),
    "Cl": (0.71, 0.37, 0.23),
    "Br": (0.86, 0.39, 0.23),
    "OH": (-0.67, 0.12, -0.37),
    "OCH3": (-0.02, 0.12, -0.27),
    "NH2": (-1.23, -0.16, -0.66),
    "NO2": (-0.28, 0.71, 0.78),
    "CN": (-0.57, 0.56, 0.66),
}
LOGP_BENZENE = 2.13


def benzenes() -> SearchSpace:
    """Benzenes with a substituent at positions 3, 4 and 5: 12^3 molecules."""
    names = tuple(SUBSTITUENTS)
    return SearchSpace(tuple(OneOf(f"position {i}", names) for i in (3, 4, 5)), name="substituted benzenes")


def benzene_objectives(states: Tensor) -> Tensor:
    """(n, 2): electron withdrawal (sum of sigma) and solubility in water (-log P by Hansch's additive rule)."""
    table = torch.tensor(list(SUBSTITUENTS.values()), dtype=torch.float64)
    rows = table[states]  # (n, 3 positions, 3 constants)
    withdrawal = rows[:, 0, 1] + rows[:, 1, 2] + rows[:, 2, 1]
    return torch.stack([withdrawal, -(LOGP_BENZENE + rows[:, :, 0].sum(1))], 1)


def letters_alike(states: Tensor) -> Tensor:
    """(n,) how often the most frequent letter of a word comes (the bag of the paper, written as words)."""
    return torch.nn.functional.one_hot(states).sum(1).amax(1).double()


@dataclass(frozen=True)
class Task:
    """An enumerable problem.

    Args:
        env: how objects are built. oracle: states (n, width) -> scores (n,) or (n, k). labels: of the objectives.
        steps, batch, lr, explore: of a training that suits it.
        top: with one objective, scores from this on are the best class; with several the front is.
        side: of a square grid; 0: the objects are no grid.
    """

    env: Env
    oracle: Callable[[Tensor], Tensor]
    labels: tuple[str, ...]
    training: Training
    top: float | None = None
    side: int = 0

    def describe(self, state: Tensor) -> dict[str, Any]:
        """An object for people: options by slot, letters, or places."""
        if isinstance(self.env, SlotFill):
            return self.env.space.describe(self.env.architecture(state))
        return {"word": "".join("ABCDEFGH"[i] for i in state.tolist())} if self.side == 0 else {"cell": state.tolist()}

    def best(self, scores: Tensor) -> Tensor:
        """(n,) bool: which objects a sampler should prefer."""
        return non_dominated(scores) if self.top is None else scores[:, 0] >= self.top


def _modes(side: int) -> Task:
    env = HyperGrid(side, 2)
    if not bool(ring(env.coordinates(torch.arange(side)[:, None])).any()):
        raise ConfigError(f"none of {side} places along an axis lies in a mode; take 8 or more")
    training = Training(steps=600, batch=64, lr=0.05, lr_z=0.05, explore=0.3)
    return Task(env, lambda s: four_modes(env.coordinates(s)), ("reward",), training, 2.0, side)


def _front(side: int, objectives: tuple[str, ...]) -> Task:
    for name in objectives:
        if name not in OBJECTIVES:
            raise unknown("objective", name, OBJECTIVES)
    if len(set(objectives)) < 2:
        raise ConfigError(f"a front needs at least two different objectives of {sorted(OBJECTIVES)}, got {objectives}")
    env = HyperGrid(side, 2)

    def oracle(states: Tensor) -> Tensor:
        points = env.coordinates(states)
        return torch.stack([OBJECTIVES[name](points) for name in objectives], 1)

    return Task(env, oracle, objectives, Training(steps=800, batch=128, lr=0.1, lr_z=0.1, explore=0.05), side=side)


def _words() -> Task:
    training = Training(steps=600, batch=64, lr=0.05, lr_z=0.05, explore=0.1)
    return Task(Sequences(4, 6), letters_alike, ("letters alike",), training, 6.0)


def _benzenes() -> Task:
    training = Training(steps=800, batch=128, lr=0.1, lr_z=0.1, explore=0.05)
    labels = ("electron withdrawal", "minus log P")
    return Task(SlotFill(benzenes()), benzene_objectives, labels, training)


TASKS = ("modes", "front", "words", "benzenes")


def task(name: str, *, side: int | None = None, objectives: tuple[str, ...] = ("branin", "currin")) -> Task:
    """A problem of TASKS.

    Args:
        side: places along an axis of "modes" (8) and "front" (32). objectives: of "front", of OBJECTIVES.
    Raises:
        ConfigError: an unknown name, fewer than two objectives of a front, a grid whose places miss the modes.
    """
    if name not in TASKS:
        raise unknown("problem", name, TASKS)
    if name == "modes":
        return _modes(8 if side is None else side)
    if name == "front":
        return _front(32 if side is None else side, objectives)
    return _words() if name == "words" else _benzenes()
