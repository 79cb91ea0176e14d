"""What is checked when a recipe is bound to a model: before anything is changed, and by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ConfigError, MaskError, NumericsError, ShapeError
from .estimators import SRSTE
from .groups import Group
from .patterns import Pattern
from .recipe import Recipe


def check_binding(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    steps: int,
    groups: list[Group],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Raise unless the recipe can run on this model for `steps` steps.

    Raises:
        ConfigError: an update that would never happen, weights of no floating type, a decay that overshoots.
        ShapeError: a pattern that does not divide a weight. MaskError: a tied weight with two patterns.
        NumericsError: NaN or infinite weights.
    """
    for update in recipe.updates:
        if update.when is not None:
            update.when.check(steps)
    for group in groups:
        for _, pattern in recipe.patterns_of(group.name).rows:
            _check_fit(pattern, group)
    _check_ties(model, recipe, groups)
    if isinstance(recipe.family, SRSTE):
        recipe.family.check(max(group["lr"] for group in optimizer.param_groups))
    for name, p in parameters.items():
        if not p.is_floating_point():
            raise ConfigError(f"{name} is of {p.dtype}; masks act on real floating-point weights")
        if not bool(torch.isfinite(p).all()):
            raise NumericsError(f"{name} has NaN or infinite weights; load a sound model first")


def _check_fit(pattern: Pattern, group: Group) -> None:
    """Raise ShapeError naming the group if the pattern does not divide it."""
    try:
        pattern.cell(group.shape)
        pattern.fixed(group.shape)
    except ShapeError as error:
        raise ShapeError(f"{group.name}: {error}") from None


def _check_ties(model: nn.Module, recipe: Recipe, groups: list[Group]) -> None:
    """A parameter that two modules share has one mask, so its names must ask for one pattern."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    chosen = {member.name for group in groups for member in group.members}
    for aliases in names.values():
        if len(aliases) < 2 or not chosen & set(aliases):
            continue
        rules = {name: recipe.patterns_of(name) for name in aliases}
        first = rules[aliases[0]]
        for name, rule in rules.items():
            if rule != first:
                raise MaskError(
                    f"{aliases[0]} and {name} are one tied weight but are given two patterns, {first.rows[0][1]} and "
                    f"{rule.rows[0][1]}; give both names the same"
                )
