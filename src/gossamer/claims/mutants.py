"""Deliberate faults in a recipe: a claim that still holds with one of them proves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gossamer.errors import unknown
from gossamer.sparsify.allocation import Uniform
from gossamer.sparsify.estimators import STE
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import Random
from gossamer.sparsify.updates import PruneGrow


def _random_prune_score(recipe: Recipe) -> Recipe:
    return _set(_set(recipe, "prune", Random()), "score", Random())


def _random_growth(recipe: Recipe) -> Recipe:
    return _set(recipe, "grow", Random())


def _no_growth(recipe: Recipe) -> Recipe:
    updates: tuple[Any, ...] = recipe.updates
    return recipe.replace(updates=tuple(u for u in updates if not isinstance(u, PruneGrow)))


def _mask_of_ones(recipe: Recipe) -> Recipe:
    return recipe.replace(updates=())


def _uniform_allocation(recipe: Recipe) -> Recipe:
    return _set(recipe, "allocation", Uniform())


def _set(recipe: Recipe, field: str, value: Any) -> Recipe:
    """Every update that has `field` gets `value` for it."""
    updates: tuple[Any, ...] = recipe.updates
    changed = (dataclasses.replace(u, **{field: value}) if hasattr(u, field) else u for u in updates)
    return recipe.replace(updates=tuple(changed))


def _plain_ste(recipe: Recipe) -> Recipe:
    return recipe.replace(family=STE())


def _no_weight_ops(recipe: Recipe) -> Recipe:
    return recipe.replace(weight_ops=())


def _no_penalty(recipe: Recipe) -> Recipe:
    return recipe.replace(regularizers=())


def _penalise_all(recipe: Recipe) -> Recipe:
    penalties: tuple[Any, ...] = recipe.regularizers
    return recipe.replace(regularizers=tuple(dataclasses.replace(p, where="all", channels=None) for p in penalties))


MUTANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "random_prune_score": _random_prune_score,
    "random_growth": _random_growth,
    "no_growth": _no_growth,
    "mask_of_ones": _mask_of_ones,
    "plain_ste": _plain_ste,
    "no_weight_ops": _no_weight_ops,
    "no_penalty": _no_penalty,
    "penalise_all": _penalise_all,
    "uniform_allocation": _uniform_allocation,
}


def mutate(recipe: Recipe, mutant: str) -> Recipe:
    """`recipe` with one fault of `MUTANTS` planted. Raises ConfigError for an unknown one."""
    if mutant not in MUTANTS:
        raise unknown("mutant", mutant, MUTANTS)
    return MUTANTS[mutant](recipe)
