"""Random pruning's exact parts: allocations, controls, and what is refused."""

import pytest
import torch

from gossamer import papers, recipes
from gossamer.claims.protocol import Context
from gossamer.papers import random_pruning
from gossamer.recipes.static import ALLOCATIONS, RATIOS
from gossamer.sparsify.allocation import ER, ERK, budget, keep_counts


def test_every_allocation_is_swept():
    assert set(random_pruning.ARMS) == {*ALLOCATIONS, *RATIOS} - {"er"}
    for width in random_pruning.WIDTHS:  # why ER is no arm of its own
        shapes = random_pruning.shapes(width)
        assert ER().densities(shapes, 0.1) == ERK().densities(shapes, 0.1)


@pytest.mark.parametrize("width", random_pruning.WIDTHS)
def test_the_reversed_ratios_keep_the_budget(width):
    shapes = random_pruning.shapes(width)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    turned = random_pruning.reversed_ratios(width)
    counts = keep_counts(turned, shapes, dict.fromkeys(shapes, 1), 0.1)
    usual = keep_counts(ERK(), shapes, dict.fromkeys(shapes, 1), 0.1)
    assert abs(sum(counts.values()) - budget(0.1, sum(sizes.values()))) <= 1
    assert counts["head.weight"] < usual["head.weight"]
    assert counts["fc1.weight"] > usual["fc1.weight"]


def test_what_density_a_tenth_cannot_pay_for():
    assert not random_pruning._feasible("uniform_plus", 32, 1)
    assert random_pruning._feasible("uniform", 32, 1)


def test_masks_are_the_same_for_a_seed_and_differ_between_seeds():
    masks = [
        random_pruning._sparsifier(recipes.random(0.9), 32, seed).entry_masks["fc1.weight"].clone()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_outputs_are_reached():
    found = papers.load("random-pruning").claim("every-output-reached").run(Context(seeds=2))
    assert found.holds
    assert found.measured["w512 effective"] == 1.0
    assert found.measured["w16 effective"] < 1.0
