"""Flags follow from the parts, and what a run did agrees with them, for every recipe."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError
from gossamer.recipes import RECIPES
from gossamer.report.taxonomy import TAXONOMIES, Observed, Taxonomy, classify, dense_state, observe, verify
from gossamer.sparsify import Sparsifier

STEPS = 40
OPTIONS = {
    "g2gnet": {"every": 5},
    "set": {"every": 5},
    "rigl": {"every": 5},
    "itop": {"every": 5},
    "gmp": {"every": 5},
    "granet": {"every": 5},
    "grasp": {"samples": 4},
    "synflow": {"rounds": 5},
    "sdgf_geometric": {"n": 1, "m": 2},
}
WITHOUT_SPARSITY = {"dense", *(name for name, row in TAXONOMIES.items() if row.pattern == "n:m")}


def build(name):
    wanted = {} if name in WITHOUT_SPARSITY else {"sparsity": 0.5}
    return RECIPES[name](**wanted, **OPTIONS.get(name, {}))


def run(recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = [(torch.randn(32, 16), torch.arange(32) % 4) for _ in range(STEPS)]
    sparsifier = Sparsifier(model, optimizer, recipe, STEPS, data=batches)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    sparsifier.finalize()
    return observe(sparsifier.history, STEPS, dense_state=dense_state(recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_row_and_its_run_agrees(name):
    recipe, trained = build(name), name == "asp"
    assert classify(recipe, trained) == TAXONOMIES[name]
    seen = run(recipe)
    seen = replace(seen, dense_state=True) if trained else seen
    assert verify(TAXONOMIES[name], seen) == []


def test_what_instrumentation_sees():
    rigl, snip, gmp = run(build("rigl")), run(build("snip")), run(build("gmp"))
    assert rigl.peak_density == pytest.approx(0.5, abs=0.002)
    assert rigl.flips > 0
    assert rigl.dense_gradient_steps > 0
    assert 0 < rigl.t_mask_fixed <= 0.75
    assert (snip.flips, snip.t_mask_fixed, snip.dense_state) == (0, 0.0, True)
    assert gmp.peak_density == 1.0
    assert 0 < gmp.t_mask_fixed <= 0.5


def test_a_sparse_start_of_granet_is_seen():
    recipe = RECIPES["granet"](sparsity=0.8, initial=0.5, every=5)
    assert classify(recipe) == TAXONOMIES["rigl"]
    assert verify(classify(recipe), run(recipe)) == []


STATIC = Observed(peak_density=0.1, flips=0, changes=0, t_mask_fixed=0.0)
MOVING = Observed(peak_density=0.1, flips=90, changes=9, t_mask_fixed=0.7)


@pytest.mark.parametrize(
    ("claimed", "seen", "message"),
    [
        ("random", MOVING, "said to be static, but 90 entries changed"),
        ("random", MOVING, "fixed before training, but changed at 0.70"),
        ("rigl", STATIC, "said to be dynamic, but 0 entries"),
        ("rigl", STATIC, "fixed during training, but never"),
        ("rigl", STATIC, "depend on time, but changed 0 times"),
        ("gmp", MOVING, "start is said to be dense, but peak density 0.1"),
        ("random", replace(STATIC, peak_density=1.0), "start is said to be sparse, but peak density 1"),
        ("dense", STATIC, "no mask is claimed"),
    ],
)
def test_lies_are_found(claimed, seen, message):
    assert any(message in line for line in verify(TAXONOMIES[claimed], seen))


def test_masks_of_the_input_are_not_judged():
    assert verify(TAXONOMIES["mixture_of_experts"], STATIC) == []


def test_a_one_shot_prune_in_the_middle_sets_a_static_mask():
    history = [{"step": 0, "density": 1.0, "flips": 0}, {"step": 50, "density": 0.1, "flips": 900}]
    seen = observe(history, 100)
    assert (seen.flips, seen.changes, seen.t_mask_fixed, seen.peak_density) == (0, 0, 0.5, 1.0)
    assert verify(TAXONOMIES["train_prune_finetune"], seen) == []


@pytest.mark.parametrize("field", ["stage", "start", "mask", "depends", "pattern"])
def test_an_unknown_value_lists_the_allowed(field):
    with pytest.raises(ConfigError, match=f"unknown {field} 'sometimes'.*Known: "):
        Taxonomy(**{field: "sometimes"})


def test_an_empty_history_is_refused():
    with pytest.raises(ConfigError, match="at least one step, got 0 rows"):
        observe([], 10)
