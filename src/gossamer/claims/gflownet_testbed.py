"""The testbeds of OP-GFN: enumerable problems, and N:M choices of a small network."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.architectures.evaluator import Evaluator
from gossamer.architectures.gflownet import Flow, GFlowNet, HyperGrid, Training, search_gflownet
from gossamer.architectures.gflownet.answer import solve
from gossamer.architectures.gflownet.tasks import four_modes, ring, task
from gossamer.architectures.nsga import search_nsga2
from gossamer.architectures.random_search import random_search
from gossamer.architectures.slots import OneOf
from gossamer.architectures.space import SearchSpace
from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.sparsify.patterns import NM

GRID, FRONT = 8, 32
MODES = Training(steps=600, batch=64, lr=0.05, lr_z=0.05, explore=0.3)
PARETO = Training(steps=800, batch=128, lr=0.1, lr_z=0.1, explore=0.05)
OPTIONS = ("dense", "2:4", "1:4", "1:8")
DENSITY = {"dense": 1.0, "2:4": 0.5, "1:4": 0.25, "1:8": 0.125}
PATTERNS = {"dense": None, "2:4": NM(2, 4), "1:4": NM(1, 4), "1:8": NM(1, 8)}
LAYERS, HIDDEN, PRICE = 4, 32, 0.1  # accuracy that a fully dense network must earn


def modes(flow: Flow, seed: int, transform: str = "none", mutant: str | None = None) -> dict[str, Any]:
    """Train on the grid with four modes; cached on disk.

    Args:
        transform: of the reward: "none", or "exp": exp(5 R), which keeps the order.
        mutant: "shuffled_scores": objects get each other's rewards; "raw_reward": the order is not used.
    Returns:
        {"mass" on the modes, "exact" share of the reward, "weakest" mode, "table": all probabilities}.
    """
    settings = asdict(MODES) | {"flow": asdict(flow), "seed": seed, "transform": transform, "mutant": mutant}

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _modes(flow, seed, transform, mutant)

    return cell(__name__, settings | {"what": "modes"}, compute)


def _modes(flow: Flow, seed: int, transform: str, mutant: str | None) -> dict[str, Any]:
    env = HyperGrid(GRID, 2)
    places = torch.randperm(env.size, generator=torch.Generator().manual_seed(seed))

    def oracle(states: Tensor) -> Tensor:
        if mutant == "shuffled_scores":
            number = places[env.index(states)]
            states = torch.stack([number % GRID, number // GRID], 1)
        value = four_modes(env.coordinates(states))
        return (5 * value).exp() if transform == "exp" else value

    used = Flow(flow.kind, None, flow.beta) if mutant == "raw_reward" else flow
    training = Training(**{**asdict(MODES), "seed": seed})
    objects, chances = GFlowNet(env, flow=used).fit(oracle, training).distribution()
    true = four_modes(env.coordinates(objects))
    inside = ring(env.coordinates(objects))
    return {
        "mass": float(chances[inside].sum()),
        "exact": float((true / true.sum())[inside].sum()),
        "weakest": float(chances[inside].min()),
        "found": int((chances[inside] >= 0.1).sum()),
        "table": chances.tolist(),
    }


def front(seed: int, mutant: str | None = None) -> dict[str, Any]:
    """Train on Branin-Currin by dominance; cached on disk. mutant "first_objective": the other is not shown.

    Returns:
        {"mass" on the true front, "covered": share of its cells with more than a tenth of their fair share,
        "cells": of the front, "entropy": over the front, relative to the largest}.
    """

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _front(seed, mutant)

    return cell(__name__, asdict(PARETO) | {"what": "front", "seed": seed, "mutant": mutant}, compute)


def _front(seed: int, mutant: str | None) -> dict[str, Any]:
    posed = task("front", side=FRONT)
    env = posed.env

    def oracle(states: Tensor) -> Tensor:
        found = posed.oracle(states)
        return found[:, :1] if mutant == "first_objective" else found

    training = Training(**{**asdict(PARETO), "seed": seed})
    objects, chances = GFlowNet(env).fit(oracle, training).distribution()
    best = posed.best(posed.oracle(objects))
    on = chances[best]
    share = on / on.sum()
    return {
        "mass": float(on.sum()),
        "covered": float((on >= 0.1 / len(on)).double().mean()),
        "cells": len(on),
        "entropy": float(-(share * share.clamp_min(1e-300).log()).sum() / math.log(len(on))),
    }


def enumerated(problem: str, flow: Flow, seed: int) -> dict[str, Any]:
    """Figures of a sampler that sees the order alone, on a problem of `tasks`, after 300 steps; cached on disk."""

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            posed = task(problem)
            return solve(posed, flow, replace(posed.training, steps=300, seed=seed)).figures()

    return cell(__name__, {"what": problem, "flow": asdict(flow), "seed": seed}, compute)


# --------------------------------------------------------------------------- N:M choices of a perceptron


def layer_space() -> SearchSpace:
    """Every hidden layer of a perceptron is dense, 2:4, 1:4 or 1:8."""
    return SearchSpace(tuple(OneOf(f"layer {i + 1}", OPTIONS) for i in range(LAYERS)), name="N:M choices")


def table() -> dict[str, list[float]]:
    """Accuracy and density of all 256 networks, trained once on digits; cached on disk. Key: options, joined by '/'."""

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            return {_key(choice): _trained(choice) for choice in layer_space()}

    return cell(__name__, {"what": "table"}, compute)


def _key(choice: tuple[Any, ...]) -> str:
    return "/".join(OPTIONS[int(i)] for i in choice)


def _trained(choice: tuple[Any, ...]) -> list[float]:
    """(accuracy on held-out digits, mean density) after 150 steps; masks of the initial weights, by magnitude."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target, dtype=torch.long)
    torch.manual_seed(0)
    order = torch.randperm(len(y))
    x, y = x[order], y[order]
    widths = [64, *[HIDDEN] * LAYERS]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    patterns = [PATTERNS[OPTIONS[i]] for i in choice]
    masks = [
        torch.ones_like(layer.weight) if p is None else p.project(layer.weight.detach().abs()).float()
        for layer, p in zip(layers, patterns, strict=True)
    ]
    head = nn.Linear(HIDDEN, 10)
    model = nn.ModuleList([*layers, head])

    def forward(inputs: Tensor) -> Tensor:
        for layer, mask in zip(layers, masks, strict=True):
            inputs = F.linear(inputs, layer.weight * mask, layer.bias).relu()
        return head(inputs)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        picked = torch.randint(900, (64,))
        loss = F.cross_entropy(forward(x[picked]), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (forward(x[900:]).argmax(1) == y[900:]).double().mean()
    return [float(right), sum(DENSITY[OPTIONS[i]] for i in choice) / LAYERS]


def search(method: str, budget: int, trial: int, mutant: str | None = None) -> dict[str, Any]:
    """Best score found by one search at equal budget, and the area under its front; cached on disk.

    Args:
        method: "order" (a GFlowNet on the scalar score), "pareto" (on both objectives), "random", "nsga2".
        mutant: "shuffled_scores": every choice is shown the score of another.
    """

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial)
            return _search(method, budget, trial, mutant)

    settings = {"what": "search", "method": method, "budget": budget, "trial": trial, "mutant": mutant}
    return cell(__name__, settings, compute)


def _search(method: str, budget: int, trial: int, mutant: str | None) -> dict[str, Any]:
    from gossamer.maths.pareto import hypervolume

    known, space = table(), layer_space()
    keys = list(known)
    wrong = dict(zip(keys, np.random.default_rng(trial).permutation(keys).tolist(), strict=True))

    def shown(choice: tuple[Any, ...]) -> list[float]:
        key = _key(choice)
        return known[wrong[key] if mutant == "shuffled_scores" else key]

    def scalar(choice: tuple[Any, ...]) -> float:
        accuracy, density = shown(choice)
        return accuracy - PRICE * density

    if method in ("order", "random"):
        evaluator = Evaluator(space, scalar, budget, goal="max")
    else:
        evaluator = Evaluator(space, lambda c: tuple(shown(c)), budget, goal=("max", "min"))
    if method == "random":
        random_search(space, draws=4 * budget, evaluator=evaluator, seed=trial)
    elif method == "nsga2":
        search_nsga2(evaluator, seed=trial)
    else:
        search_gflownet(evaluator, warm=20, fresh=10, updates=60, seed=trial)
    true = [known[_key(e.architecture)] for e in evaluator.history]
    return {
        "best": max(a - PRICE * d for a, d in true),
        "area": hypervolume(true, (0.0, 1.0), (True, False)),
        "spent": evaluator.spent,
    }
