"""Recipes are values: YAML there and back, clear errors, short compositions."""

import inspect

import pytest
import yaml

from gossamer import recipes
from gossamer.errors import ConfigError
from gossamer.sparsify import Recipe, Select
from gossamer.sparsify.patterns import NM, Block


def test_yaml_is_readable():
    text = recipes.rigl(sparsity=0.95).to_yaml()
    data = yaml.safe_load(text)
    assert data["name"] == "rigl"
    assert data["updates"][1]["prune_grow"]["grow"] == "gradient"
    assert "python" not in text


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_round_trip(name):
    recipe = recipes.RECIPES[name]()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()).to_yaml() == recipe.to_yaml()


def test_layer_patterns_round_trip():
    recipe = recipes.rigl().replace(
        layers=(("conv*", Block(4, 1)), ("fc", NM(1, 4, tail="keep"))), select=Select(exclude=("stem.weight",))
    )
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_random_knows_all_allocations():
    for name in ("uniform", "uniform_plus", "er", "erk", "erk_plus", "snip", "grasp", "magnitude"):
        recipe = recipes.random(0.5, name)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    with pytest.raises(ConfigError, match="did you mean 'erk'"):
        recipes.random(0.5, "erkk")


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_short(name):
    lines = inspect.getsource(recipes.RECIPES[name]).splitlines()
    body = "\n".join(lines).split('"""')[-1].strip().splitlines()
    assert len(body) <= 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nupdates: [prune_tp]", "did you mean 'prune_to'"),
        ("name: x\nupdate: []", "did you mean 'updates'"),
        ("pattern: {nm: {n: 5, m: 4}}", "n in 1..m"),
        ("pattern: {nm: {k: 5}}", "field of nm 'k'"),
        ("[1, 2]", "mapping"),
        ("updates: [{prune_to: {when: every}}]", "density"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_yaml(text)


def test_yaml_executes_nothing():
    with pytest.raises(yaml.YAMLError):
        Recipe.from_yaml("name: !!python/object/apply:os.system ['true']")
