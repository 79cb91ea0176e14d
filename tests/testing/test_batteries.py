"""The public batteries over every pattern, score, allocation, schedule, update and recipe, and that they can fail."""

import dataclasses
import inspect

import pytest
import torch

from gossamer import recipes
from gossamer.maths.schedules import Constant, Cosine, Cubic, Every, Exponential, Fade, Linear, Steps
from gossamer.sparsify import Sparsifier
from gossamer.sparsify.allocation import ER, ERK, Global, Uniform, UniformPlus
from gossamer.sparsify.ensembles import GroupToGroup, WithinGroups
from gossamer.sparsify.patterns import NM, Block, Cols, Rows, Unstructured
from gossamer.sparsify.scores import SCORES, Combined, Gradient, Hebbian, Magnitude, Normalised, Random
from gossamer.sparsify.updates import Freeze, GrowTo, PruneGrow, PruneTo, SetTo
from gossamer.testing import (
    check_allocation,
    check_pattern,
    check_recipe,
    check_schedule,
    check_score,
    check_sparsifier,
    check_update,
)

PATTERNS = [
    Unstructured(),
    Block(4, 1),
    Block(2, 2),
    Rows(),
    Cols(),
    NM(2, 4),
    NM(1, 4, "oihw_flat", "keep"),
    NM(3, 5, tail="proportional"),
    GroupToGroup(4, 2),
    GroupToGroup(2, 1, inputs=4, p_in=0.5, p_out=0.1),
]
SCHEDULES = [Constant(0.3), Linear(1, 0.1), Cubic(1, 0.1), Cosine(0.5, 0.005), Exponential(1, 0.1), Fade(5, 0.1, 0.9)]
LOOSE = Global(allow_empty=True)
UPDATES = [
    SetTo(Magnitude(), 0.6, LOOSE),
    SetTo(Random(), 0.3, ERK()),
    SetTo(Random(), 0.6, ratios=Normalised(Magnitude())),
    SetTo(Magnitude(), 0.6, LOOSE, rounds=3),
    PruneTo(Cubic(0.5, 0.1), allocation=LOOSE, when=Every(10)),
    PruneTo(Cubic(0.5, 0.1), allocation=Uniform(), when=Every(10)),
    PruneGrow(when=Every(10)),
    PruneGrow(Cosine(0.5), grow=Gradient(), rounding="ceil", allow_reverse=False, when=Every(10)),
    PruneGrow(grow=Hebbian(), when=Every(10)),
    PruneGrow(grow=WithinGroups(Hebbian(signed=True), 2, inputs=1), when=Every(10)),
    PruneGrow(redistribute="momentum", when=Every(10)),
    PruneGrow(redistribute="nonzeros", grow=Gradient(), when=Every(10)),
    GrowTo(Linear(0.5, 0.9), when=Every(10)),
    Freeze(),
]
SHORT = {"sparsity": 0.8, "every": 4}
FITTING = {"sdgf_geometric": {"n": 1, "m": 2}}  # its first groups are eight times as large and must divide 16 inputs
RECIPES = {
    name: build(**{k: v for k, v in SHORT.items() if k in inspect.signature(build).parameters}, **FITTING.get(name, {}))
    for name, build in recipes.RECIPES.items()
}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_pattern(pattern):
    check_pattern(pattern)


@pytest.mark.parametrize("schedule", [*SCHEDULES, Steps(((0.0, 1.0), (0.5, 0.1)))], ids=str)
def test_schedule(schedule):
    check_schedule(schedule, 0.0, 1.0)


@pytest.mark.parametrize(
    "allocation", [Uniform(), UniformPlus(), ER(), ERK(), ERK(power=0.5), ERK(last_dense=True), Global()], ids=str
)
def test_allocation(allocation):
    check_allocation(allocation)


@pytest.mark.parametrize("name", [n for n in SCORES if n not in ("combined", "normalised", "bn_scale")])
def test_score(name):
    check_score(SCORES[name]())


def test_wrapped_scores():
    check_score(Combined(Magnitude(), Gradient(), 0.5, 2.0))
    check_score(Normalised(Magnitude(), 2.0))


@pytest.mark.parametrize("update", UPDATES, ids=lambda u: type(u).__name__)
@pytest.mark.parametrize("pattern", [Unstructured(), Block(4, 1), Rows()], ids=str)
def test_update(update, pattern):
    check_update(update, pattern)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    check_recipe(RECIPES[name])


@pytest.mark.parametrize("name", ["rigl", "granet", "sr_ste", "snip"])
def test_sparsifier(name):
    from gossamer.testing.recipes import batch

    check_sparsifier(lambda model, opt, steps: Sparsifier(model, opt, RECIPES[name], steps, data=[batch(0)]))


# ---- the batteries themselves must be able to fail


@dataclasses.dataclass(frozen=True)
class _KeepsOneMore(Unstructured):
    def project(self, scores, keep=None):
        return super().project(scores, min(scores.numel(), keep + 1))


def test_pattern_battery_catches_wrong_count():
    with pytest.raises(AssertionError, match="survivors"):
        check_pattern(_KeepsOneMore())


@dataclasses.dataclass(frozen=True)
class _Unseeded(Magnitude):
    def __call__(self, ctx):
        return {g.name: torch.rand(g.shape) for g in ctx.groups}


def test_score_battery_catches_randomness():
    with pytest.raises(AssertionError, match="global generator"):
        check_score(_Unseeded())


class _Forgets(Sparsifier):
    def _edit_gradients(self):
        """Leaves gradients unmasked."""


def test_recipe_battery_catches_unmasked_gradients(monkeypatch):
    monkeypatch.setattr(Sparsifier, "_edit_gradients", lambda self: None)
    with pytest.raises(Exception, match="not zero"):
        check_recipe(RECIPES["random"], optimizers=["nesterov"])


class _ForgetsMasks(Sparsifier):
    def finalize(self):
        self.remove()
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(1.0)
        return self.model


def test_sparsifier_battery_catches_leaks():
    with pytest.raises(AssertionError, match="not zero"):
        check_sparsifier(lambda model, opt, steps: _ForgetsMasks(model, opt, RECIPES["random"], steps))
