"""Fronts and areas against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.maths.pareto import front, hypervolume

points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=9)


def test_front_by_hand():
    assert front([(1, 5), (2, 4), (2, 6), (3, 1)], (False, False)) == [0, 1, 3]
    assert front([(1, 5), (2, 4), (2, 6), (3, 1)], (True, True)) == [2, 3]
    assert front([(1, 1), (1, 1)], (True, True)) == [0, 1]
    assert front([], (True, False)) == []


@given(points)
def test_front_equals_the_definition(cloud):
    def beats(p, q):
        return p[0] >= q[0] and p[1] <= q[1] and p != q

    want = [i for i, q in enumerate(cloud) if not any(beats(p, q) for p in cloud)]
    assert front(cloud, (True, False)) == want


@given(points)
def test_hypervolume_counts_the_unit_squares_dominated(cloud):
    want = sum(any(x <= i and y <= j for x, y in cloud) for i in range(8) for j in range(8))
    assert hypervolume(cloud, (8, 8), (False, False)) == want
    flipped = [(8 - x, 8 - y) for x, y in cloud]
    assert hypervolume(flipped, (0, 0), (True, True)) == want


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match=r"expected \(n, 2\)"):
        front([(1, 2, 3)], (True, True))
    with pytest.raises(NumericsError, match="NaN"):
        front(np.array([[np.nan, 1.0]]), (True, True))
    with pytest.raises(ConfigError, match="2 objectives, got 3"):
        hypervolume([(1, 2, 3)], (0, 0, 0), (True, True, True))
