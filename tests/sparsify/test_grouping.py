"""Balanced grouping against brute force over all partitions."""

from itertools import combinations

import numpy as np
import pytest

from gossamer.errors import ConfigError, ShapeError
from gossamer.sparsify.grouping import Part, group_rows, kept
from gossamer.sparsify.strips import OutBlock


def partitions(rows, height):
    """All ways to cut `rows` into sets of `height`: 105 and 35 for 8 rows and height 2 and 4."""
    if not rows:
        yield []
        return
    for rest in combinations(rows[1:], height - 1):
        left = [r for r in rows[1:] if r not in rest]
        for others in partitions(left, height):
            yield [rows[0], *rest, *others]


def part(rng, rows=8, inputs=6, height=2, sparsity=0.5, balanced=False):
    return Part(np.abs(rng.standard_t(2.5, (rows, inputs))), OutBlock(height, balanced), sparsity)


@pytest.mark.parametrize(("height", "count"), [(2, 105), (4, 35)])
def test_near_the_best_of_all_partitions(height, count):
    orders = list(partitions(list(range(8)), height))
    assert len(orders) == count
    ratios = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        one = part(rng, height=height, sparsity=float(rng.choice([0.3, 0.5, 0.8])))
        best = max(one.kept(order) for order in orders)
        found = one.kept(group_rows([one], seed=seed))
        assert one.kept(range(8)) <= found <= best + 1e-9
        ratios.append(found / best)
    assert min(ratios) >= 0.95
    assert np.mean(ratios) > 0.995


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("rows", [7, 16, 30])
def test_an_order_is_a_permutation_and_never_worse(rows, balanced):
    for seed in range(10):
        one = part(np.random.default_rng(seed), rows, 9, 4, 0.6, balanced)
        order = group_rows([one], seed=seed)
        assert sorted(order) == list(range(rows))
        assert one.kept(order) >= one.kept(range(rows))
        assert one.kept(order) <= one.free() * (1 + 1e-9) or rows % 4


def test_planted_clusters_are_found():
    rng = np.random.default_rng(0)
    clusters = np.abs(rng.standard_t(2.5, (4, 32)))
    shuffled = rng.permutation(16)
    one = Part(np.repeat(clusters, 4, 0)[shuffled], OutBlock(4), 0.5)
    order = group_rows([one])
    strips = (shuffled[order] // 4).reshape(4, 4)
    assert (strips == strips[:, :1]).all()
    assert one.kept(order) == pytest.approx(one.free())


def test_layers_that_share_channels_are_grouped_jointly():
    rng = np.random.default_rng(1)
    two = [part(rng, 16, 8, 4, 0.5), part(rng, 16, 5, 4, 0.7)]
    order = group_rows(two)
    assert kept(two, order) == pytest.approx(sum(p.kept(order) for p in two))
    assert kept(two, order) > kept(two, range(16))


def test_more_rows_than_candidates():
    one = part(np.random.default_rng(0), 260, 12, 4, 0.5)
    order = group_rows([one], passes=1)
    assert sorted(order) == list(range(260))
    assert one.kept(order) > one.kept(range(260))


def test_nothing_to_group():
    one = part(np.random.default_rng(0), 4, 5, 4)
    assert group_rows([one]) == [0, 1, 2, 3]
    single = part(np.random.default_rng(0), 9, 5, 1)
    assert group_rows([single]) == list(range(9))
    assert single.kept(range(9)) == pytest.approx(single.free())


def test_parts_that_do_not_fit_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="one height"):
        group_rows([])
    with pytest.raises(ConfigError, match="one height"):
        group_rows([part(rng, height=2), part(rng, height=4)])
    with pytest.raises(ShapeError, match="different rows"):
        group_rows([part(rng, 8), part(rng, 12)])
