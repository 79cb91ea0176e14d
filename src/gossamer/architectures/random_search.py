"""Random search: the cheapest search of all, and so the opponent of every other one (Farahani 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConfigError
from .evaluator import Evaluation, Evaluator, Goal, Score
from .space import Architecture, SearchSpace


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        best: the evaluation with the best objective, the earliest of equal ones.
        first: the first one drawn: what no search at all would have taken (the paper's random configuration).
        evaluations: all that were paid for, in order. trajectory: best objective after each.
        goal: "min" or "max".
        cost: what was spent, such as {"evaluations": 200}.
    """

    best: Evaluation
    first: Evaluation
    evaluations: tuple[Evaluation, ...]
    trajectory: tuple[float, ...]
    goal: Goal
    cost: dict[str, Any] = field(default_factory=dict)


def draws_of(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """`count` independent uniform draws; the whole space in order where it is no larger than that and small.

    The first draw does not depend on `count` unless the space is exhausted.

    Raises:
        ConfigError: count < 1.
    """
    if count < 1:
        raise ConfigError(f"random search needs at least 1 draw, got {count}")
    rng = np.random.default_rng(seed)
    first = space.sample(rng)
    if space.combinations <= min(count, 100_000):
        return [first, *(found for found in space if found != first)]
    return [first, *(space.sample(rng) for _ in range(count - 1))]


def random_search(
    space: SearchSpace,
    score: Score | None = None,
    draws: int = 200,
    *,
    seed: int = 0,
    goal: Goal = "min",
    evaluator: Evaluator | None = None,
) -> SearchResult:
    """Draw architectures uniformly, score each once, keep the best.

    Args:
        score: architecture -> objective. NaN is recorded and never the best.
        draws: K of the paper (200 in the small reproduction; 100 to 1000 there).
        evaluator: ask this one instead (a shared budget, a file to resume from); `score` is then not needed, and the
            search ends with its budget.
    Raises:
        ConfigError: draws < 1, or neither score nor evaluator. NumericsError: all scores are NaN.
    """
    wanted = draws_of(space, draws, seed)
    if evaluator is None:
        if score is None:
            raise ConfigError("random search needs a score or an evaluator")
        evaluator = Evaluator(space, score, len(wanted), goal=goal, allow_nan=True)
    for architecture in wanted:
        if not evaluator.remaining and not evaluator.knows(architecture):
            break
        evaluator.evaluate(architecture)
    return result_of(evaluator, wanted[0])


def result_of(evaluator: Evaluator, first: Architecture) -> SearchResult:
    """The result that an evaluator's memory amounts to."""
    return SearchResult(
        evaluator.best,
        evaluator.evaluate(first),
        tuple(evaluator.history),
        tuple(evaluator.trajectory()),
        evaluator.goals[0],
        {"evaluations": evaluator.spent, "asked": evaluator.asked},
    )
