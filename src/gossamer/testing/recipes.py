"""Batteries for whole recipes: trained for a few steps on a small network, in every way a user might."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..sparsify.estimators import Projected
from ..sparsify.recipe import Recipe
from ..sparsify.sparsifier import Sparsifier
from .parts import expect

Factory = Callable[[nn.Module, torch.optim.Optimizer, int], Any]

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd-foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-3),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9),
}
STEPS = 24


def network() -> nn.Module:
    """16 - 32 - 16 - 4 with batch norm, seeded by the caller."""
    return nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """A fixed learnable batch for each step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(128, 16, generator=generator)
    return x, x[:, :4].argmax(1)


def train(
    recipe: Recipe,
    optimizer: str = "nesterov",
    steps: int = STEPS,
    watch: Callable[[Sparsifier], None] = lambda sp: None,
    stop: int | None = None,
    state: dict[str, Any] | None = None,
) -> tuple[nn.Module, Sparsifier, torch.optim.Optimizer]:
    """Train the small network under a recipe; `state` continues where another call stopped."""
    torch.manual_seed(0)
    model = network()
    opt = OPTIMIZERS[optimizer](model.parameters())
    sp = Sparsifier(model, opt, recipe, steps, data=[batch(0)])
    if state is not None:
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["optimizer"])
        sp.load_state_dict(state["sparsifier"])
    for step in range(sp.step, stop or steps):
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        watch(sp)
    return model, sp, opt


def check_recipe(recipe: Recipe, optimizers: Iterable[str] = OPTIMIZERS) -> None:
    """YAML round trip to the same bits, exact zeros and legal masks after every step, exact resume, plain end."""
    rebuilt = Recipe.from_yaml(recipe.to_yaml())
    expect(rebuilt == recipe, f"{recipe.name}: YAML gives another recipe")
    for optimizer in optimizers:
        model, _, _ = train(recipe, optimizer, watch=Sparsifier.check)
        again, _, _ = train(rebuilt, optimizer)
        _same(model, again, f"{recipe.name} with {optimizer}: the recipe from YAML trains to other bits")
    _check_resume(recipe)
    _check_end(recipe, *train(recipe)[:2])


def _same(one: nn.Module, two: nn.Module, text: str) -> None:
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        expect(torch.equal(a, b), f"{text} ({name})")


def _check_resume(recipe: Recipe) -> None:
    half = STEPS // 2
    model, sp, opt = train(recipe, "adam", stop=half)
    state = {"model": model.state_dict(), "optimizer": opt.state_dict(), "sparsifier": sp.state_dict()}
    resumed, sp2, _ = train(recipe, "adam", state=state)
    whole, sp3, _ = train(recipe, "adam")
    _same(resumed, whole, f"{recipe.name}: a resumed run ends with other bits")
    expect(sp2.history == sp3.history, f"{recipe.name}: a resumed run has another history")
    for name in sp3.masks:
        expect(torch.equal(sp2.masks[name], sp3.masks[name]), f"{recipe.name}: resumed mask of {name} differs")


def _check_end(recipe: Recipe, model: nn.Module, sp: Sparsifier) -> None:
    masks = {name: mask.clone() for name, mask in sp.entry_masks.items()}
    sp.finalize()
    plain = network()
    plain.load_state_dict(model.state_dict(), strict=True)
    for name, mask in masks.items():
        leaked = int(dict(model.named_parameters())[name].detach()[~mask].count_nonzero())
        expect(leaked == 0, f"{recipe.name}: {leaked} masked weights of {name} are not zero after finalize")
    expect(not model[0]._forward_hooks, f"{recipe.name}: hooks are left behind")  # type: ignore[index]
    if isinstance(recipe.family, Projected):
        sp.finalize()  # a second call is harmless


def check_sparsifier(factory: Factory) -> None:
    """Any object with the Sparsifier's interface: exact zeros with every optimiser, resume, accumulation, clean end.

    Args:
        factory: callable (model, optimizer, steps) -> an object with step hooks, `masks`, `state_dict`,
            `load_state_dict` and `finalize`.
    """
    for name, make in OPTIMIZERS.items():
        torch.manual_seed(0)
        model = network()
        opt = make(model.parameters())
        sp = factory(model, opt, STEPS)
        for step in range(STEPS):
            x, y = batch(step)
            for xs, ys in zip(x.chunk(2), y.chunk(2), strict=True):  # accumulation: one update per optimiser step
                (F.cross_entropy(model(xs), ys) / 2).backward()
            opt.step()
            opt.zero_grad()
        state = sp.state_dict()
        sp.load_state_dict(state)
        masks = {n: m.clone() for n, m in sp.masks.items()}
        sp.finalize()
        parameters = dict(model.named_parameters())
        for parameter, mask in masks.items():
            if parameter in parameters:
                leaked = int(parameters[parameter].detach()[~mask].count_nonzero())
                expect(leaked == 0, f"{name}: {leaked} masked weights of {parameter} are not zero")
        network().load_state_dict(model.state_dict(), strict=True)
