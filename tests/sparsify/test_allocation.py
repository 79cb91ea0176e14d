"""Allocation: hand values, exact sums, infeasible budgets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError, MaskError
from gossamer.sparsify.allocation import (
    ER,
    ERK,
    FlopsBudget,
    Given,
    Global,
    Uniform,
    UniformPlus,
    budget,
    global_counts,
    keep_counts,
)

SHAPES = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "fc": (10, 128)}


def ones(shapes):
    return dict.fromkeys(shapes, 1)


def test_erk_by_hand():
    assert ERK().raw((32, 16, 3, 3)) == pytest.approx((16 + 32 + 3 + 3) / (16 * 32 * 9))
    assert ERK().raw((32, 16, 3, 3)) == pytest.approx(0.0117188, abs=1e-7)


def test_er_equals_erk_for_linear_layers():
    shapes = {"a": (300, 144), "b": (100, 300), "c": (10, 100)}
    assert ER().densities(shapes, 0.1) == ERK().densities(shapes, 0.1)


def test_erk_on_equal_layers_is_uniform():
    shapes = {"a": (64, 64, 3, 3), "b": (64, 64, 3, 3)}
    assert ERK().densities(shapes, 0.2) == pytest.approx(Uniform().densities(shapes, 0.2))


def test_erk_solves_the_budget_with_dense_layers():
    densities = ERK().densities(SHAPES, 0.6)
    sizes = {n: torch.Size(s).numel() for n, s in SHAPES.items()}
    assert max(densities.values()) == 1.0
    assert sum(densities[n] * sizes[n] for n in sizes) == pytest.approx(0.6 * sum(sizes.values()))
    # eps p_l of the layers that are not dense
    free = [n for n in SHAPES if densities[n] < 1]
    ratio = {densities[n] / ERK().raw(SHAPES[n]) for n in free}
    assert max(ratio) == pytest.approx(min(ratio))


def test_uniform_plus_keeps_the_budget():
    densities = UniformPlus().densities(SHAPES, 0.4)
    sizes = {n: torch.Size(s).numel() for n, s in SHAPES.items()}
    assert densities["conv1"] == 1.0
    assert densities["fc"] == 0.4
    assert sum(densities[n] * sizes[n] for n in sizes) == pytest.approx(0.4 * sum(sizes.values()))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0.05, 1.0),
    st.sampled_from([Uniform(), ER(), ERK()]),
)
def test_counts_sum_to_the_budget(sizes, density, allocation):
    shapes = {str(i): size for i, size in enumerate(sizes)}
    total = sum(a * b for a, b in sizes)
    if budget(density, total) < len(sizes):
        with pytest.raises(MaskError, match="emptied"):
            keep_counts(allocation, shapes, ones(shapes), density)
        return
    counts = keep_counts(allocation, shapes, ones(shapes), density)
    assert sum(counts.values()) == budget(density, total)
    assert all(1 <= counts[n] <= a * b for n, (a, b) in shapes.items())


def test_blocks_are_counted_whole():
    shapes = {"a": (16, 8), "b": (32, 8)}
    counts = keep_counts(Uniform(), shapes, {"a": 4, "b": 4}, 0.5)
    assert all(c % 4 == 0 for c in counts.values())
    assert sum(counts.values()) == 192


def test_global_ties_go_to_the_earlier_layer():
    scores = {"a": torch.ones(4), "b": torch.ones(4)}
    assert global_counts(scores, ones(scores), 5) == {"a": 4, "b": 1}


def test_global_with_unequal_cells_stays_within_the_budget():
    scores = {"a": torch.tensor([9.0, 1.0]), "b": torch.tensor([5.0, 4.0, 3.0])}
    counts = global_counts(scores, {"a": 4, "b": 1}, 6, allow_empty=True)
    assert counts == {"a": 4, "b": 2}


def test_global_names_the_emptied_layer():
    scores = {"big": torch.ones(10), "small": torch.zeros(3)}
    with pytest.raises(MaskError, match="small would be emptied"):
        global_counts(scores, ones(scores), 5)
    assert global_counts(scores, ones(scores), 5, allow_empty=True)["small"] == 0


def test_given_and_flops_budget():
    given_table = Given((("conv1", 1.0), ("conv2", 0.1), ("fc", 0.5)))
    assert keep_counts(given_table, SHAPES, ones(SHAPES), 0.5)["conv2"] == 461
    flops = {"conv1": 1e6, "conv2": 1e6, "fc": 1e3}
    densities = FlopsBudget(tuple(flops.items())).densities(SHAPES, 0.25)
    assert sum(densities[n] * flops[n] for n in flops) == pytest.approx(0.25 * sum(flops.values()), rel=1e-6)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_density_outside_the_interval(density):
    with pytest.raises(ConfigError, match=r"density must lie in \(0, 1\]"):
        keep_counts(Uniform(), SHAPES, ones(SHAPES), density)


def test_infeasible_uniform_plus_and_bad_power():
    narrow = {"a": (16, 144), "b": (16, 16), "c": (10, 16)}
    with pytest.raises(ConfigError, match="infeasible"):
        UniformPlus().densities(narrow, 0.1)
    with pytest.raises(ConfigError, match="power"):
        ERK(power=-1)
    with pytest.raises(ConfigError, match="unknown layer 'conv3'"):
        Given((("conv3", 1.0),)).densities(SHAPES, 0.5)


def test_global_is_an_allocation():
    assert Global().densities(SHAPES, 0.5) == dict.fromkeys(SHAPES, 0.5)
