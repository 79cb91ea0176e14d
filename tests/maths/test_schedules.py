"""Schedules: ends, monotonicity, and the update window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.maths.schedules import Cosine, Cubic, Every, Exponential, Steps, geometric_densities


def test_cubic_by_hand():
    cubic = Cubic(1.0, 0.1, 0.2, 0.6)
    assert cubic(0.2) == 1.0
    assert cubic(0.6) == 0.1
    assert cubic(0.4) == pytest.approx(0.1 + 0.9 * 0.125)
    slope = (cubic(0.6) - cubic(0.6 - 1e-4)) / 1e-4
    assert abs(slope) < 1e-4  # flat where it ends


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_cubic_is_monotone(t0, t1, a, b):
    begin, end = sorted((t0, t1))
    early, late = sorted((a, b))
    cubic = Cubic(1.0, 0.02, begin, end)
    assert cubic(early) >= cubic(late) - 1e-12


def test_cosine_is_rigls():
    """alpha / 2 (1 + cos(pi t / T_end)), then 0."""
    rate = Cosine(0.3, end=0.75)
    assert rate(0.375) == pytest.approx(0.15)
    assert rate(0.75) == 0.0
    assert rate(0.9) == 0.0


def test_exponential_is_synflows():
    densities = [Exponential(1.0, 0.01)(k / 100) for k in range(101)]
    assert densities[50] == pytest.approx(0.1)
    assert densities[-1] == 0.01


def test_geometric_densities_end_exactly():
    assert geometric_densities(0.1, 3)[-1] == 0.1
    assert geometric_densities(0.1, 3)[0] == pytest.approx(0.1 ** (1 / 3))


@given(st.integers(1, 50), st.integers(1, 3000), st.floats(0, 0.5), st.floats(0.5, 1))
def test_window(interval, steps, start, stop):
    every = Every(interval, start, stop)
    due = [t for t in range(steps + 1) if every.due(t, steps)]
    assert all(t % interval == 0 and t > 0 for t in due)
    if due:
        assert every.progress(due[-1], steps) == 1.0
        positions = [every.progress(t, steps) for t in due]
        assert positions == sorted(positions)
    else:
        with pytest.raises(ConfigError, match="no mask update would happen"):
            every.check(steps)


def test_fraction_interval():
    assert Every(0.1).stride(1000) == 100
    assert Every(0.1).stride(3) == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Cubic(1, 0, 0.5, 0.2), "begin <= end"),
        (lambda: Exponential(1.0, 0.0), "positive"),
        (lambda: Every(0), "positive"),
        (lambda: Every(1, 0.9, 0.1), "start <= stop"),
        (lambda: Steps(((0.5, 1.0),)), "from 0.0"),
        (lambda: geometric_densities(0.0, 3), "density"),
    ],
)
def test_bad_values(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
