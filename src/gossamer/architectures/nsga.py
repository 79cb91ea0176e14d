"""NSGA-II of pymoo over a space of options, through the counted evaluator: the peer of multi-objective search."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import ConfigError, MissingExtra
from .evaluator import BudgetSpentError, Evaluation, Evaluator
from .slots import OneOf


def search_nsga2(
    evaluator: Evaluator, *, population: int = 20, seed: int = 0, generations: int = 200
) -> list[Evaluation]:
    """Search until the evaluator's budget is spent, or `generations` have passed (small spaces run dry).

    Args:
        evaluator: of a space of options without a rule.
        population: of a generation; 20 suits budgets around 100.
    Returns:
        the evaluator's history, as `search_gflownet` does.
    Raises:
        ConfigError: another kind of slot, or a rule. MissingExtra: pymoo is not installed.
    """
    space = evaluator.space
    if space.rule is not None or not all(isinstance(slot, OneOf) for slot in space.slots):
        raise ConfigError("NSGA-II moves among options without a rule; put the rule into the objective")
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.optimize import minimize
    except ImportError as error:
        raise MissingExtra("pymoo", "search") from error
    signs = [-1.0 if goal == "max" else 1.0 for goal in evaluator.goals]

    class Problem(ElementwiseProblem):
        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            values = evaluator.evaluate(tuple(int(v) for v in x)).values
            out["F"] = [sign * value for sign, value in zip(signs, values, strict=True)]

    tops = [slot.count - 1 for slot in space.slots]
    problem = Problem(n_var=len(tops), n_obj=len(signs), xl=[0] * len(tops), xu=tops, vtype=int)
    algorithm = NSGA2(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    with suppress(BudgetSpentError):
        minimize(problem, algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return evaluator.history
