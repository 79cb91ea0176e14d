"""Curves of EM's settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.domains.sparse_coding.anneal import Anneal, Settings
from gossamer.errors import ConfigError


def test_nothing_set_is_plain_em():
    assert Anneal().at(3, 10) == Settings()


def test_positions_are_steps_fractions_or_counted_from_the_end():
    anneal = Anneal(T=((0, 4.0), (0.5, 2.0), (-10, 1.0)))
    assert [anneal.at(step, 100).T for step in (0, 25, 50, 70, 90, 99)] == [4.0, 3.0, 2.0, 1.5, 1.0, 1.0]
    assert Anneal(ncut=((10, 0.0), (20, 1.0))).at(15, 100).ncut == 0.5
    assert Anneal(ncut=((10, 0.5), (20, 1.0))).at(0, 100).ncut == 0.5


@given(st.floats(1, 9), st.floats(1, 9), st.integers(1, 200), st.data())
def test_values_stay_between_their_points(first, last, steps, data):
    step = data.draw(st.integers(0, steps - 1))
    value = Anneal(T=((0.0, first), (0.7, last))).at(step, steps).T
    assert min(first, last) - 1e-9 <= value <= max(first, last) + 1e-9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"T": ((0, 0.0),)}, "annealing of T needs values in"),
        ({"ncut": 1.5}, "annealing of ncut"),
        ({"W_noise": -1.0}, "annealing of W_noise"),
        ({"T": ((0, float("nan")),)}, "annealing of T needs finite"),
        ({"temperature": 2.0}, "unknown annealing parameter 'temperature'"),
        ({"Ncut": 1.0}, "did you mean 'ncut'"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        Anneal.of(given)


def test_positions_must_rise():
    with pytest.raises(ConfigError, match="positions must rise"):
        Anneal(T=((0.8, 4.0), (0.2, 1.0))).at(0, 10)
