"""The table of states against enumeration, and its limits."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from gossamer.domains.sparse_coding.sets import ActiveSets
from gossamer.domains.sparse_coding.states import StateSpace, count_states
from gossamer.domains.sparse_coding.truncation import (
    active_counts,
    binomial_moments,
    corrected_activities,
    corrected_activity,
    few_active,
)
from gossamer.errors import ConfigError, DataError

VALUES = [(1.0,), (-1.0, 1.0), (1.0, 2.0, -0.5)]


def all_states(space):
    """Every column's state for one point whose candidates are 0..H'-1."""
    candidates = torch.arange(space.candidates)[None]
    return space.decode(candidates, torch.arange(space.size)[None])[0], candidates


@pytest.mark.parametrize("values", VALUES)
@given(st.integers(1, 5).flatmap(lambda h: st.tuples(st.just(h), st.integers(1, h))), st.data())
def test_states_are_those_of_the_definition(values, sizes, data):
    units, candidates = sizes
    active = data.draw(st.integers(1, candidates))
    space = StateSpace(units, candidates, active, values)
    states, _ = all_states(space)
    found = {tuple(row) for row in states.tolist()}
    wanted = {
        state
        for state in product((0.0, *values), repeat=units)
        if sum(map(bool, state)) <= 1 or (sum(map(bool, state)) <= active and not any(state[candidates:]))
    }
    assert found == wanted
    assert len(states) == space.size == len(wanted) == count_states(units, candidates, active, len(values))


@pytest.mark.parametrize("values", VALUES)
def test_moments_are_sums_over_states(values):
    space = StateSpace(5, 3, 2, values)
    n = 7
    q = torch.rand(n, space.size, dtype=torch.float64).softmax(1)
    candidates = torch.stack([torch.randperm(5)[:3].sort().values for _ in range(n)])
    states = space.decode(candidates, torch.arange(space.size).expand(n, -1))
    mean = torch.einsum("ns,nsh->nh", q, states)
    second = torch.einsum("ns,nsh,nsk->nhk", q, states, states)
    torch.testing.assert_close(space.mean(candidates, q), mean)
    torch.testing.assert_close(space.second_moment(candidates, q, per_point=True), second)
    torch.testing.assert_close(space.second_moment(candidates, q), second.sum(0))
    torch.testing.assert_close(space.activity(candidates, q), torch.einsum("ns,nsh->nh", q, (states != 0).double()))
    counts = torch.stack([torch.einsum("ns,nsh->", q, (states == v).double()) for v in values])
    torch.testing.assert_close(space.occurrences(q), counts)


@pytest.mark.parametrize(("candidates", "active"), [(4, 2), (2, 3), (2, 0)])
def test_numbers_out_of_order_are_named(candidates, active):
    with pytest.raises(ConfigError, match=f"max_active={active}, n_candidates={candidates}, n_components=3"):
        StateSpace(3, candidates, active)


def test_too_many_states_are_counted():
    with pytest.raises(DataError, match=r"states, whose tables take \d+ bytes .*lower n_candidates or max_active"):
        StateSpace(60, 40, 12)


@given(st.integers(1, 12), st.floats(0.01, 0.95), st.data())
def test_truncated_binomial_moments(units, probability, data):
    active = data.draw(st.integers(1, units))
    few, mean = binomial_moments(units, probability, active)
    assert few == pytest.approx(binom.cdf(active, units, probability))
    assert mean == pytest.approx(sum(k * binom.pmf(k, units, probability) for k in range(active + 1)))
    # the mean activity that this truncation leaves of a prior leads back to the prior, unless hardly any point is left
    if few >= 0.5:
        truncated = mean / few / units
        assert corrected_activity(units, probability, active, truncated) == pytest.approx(probability)
        p = torch.full((units,), probability, dtype=torch.float64)
        back = corrected_activities(p, active, torch.full_like(p, truncated))
        torch.testing.assert_close(back, p, rtol=1e-6, atol=1e-9)


def test_no_truncation_needs_no_correction():
    assert binomial_moments(10, 0.3, 10) == (pytest.approx(1.0), pytest.approx(3.0))
    assert corrected_activity(10, 0.3, 10, 0.25) == pytest.approx(0.25)
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    mean = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    torch.testing.assert_close(corrected_activities(p, 3, mean), mean)


def test_unequal_probabilities_against_enumeration():
    p = torch.tensor([0.1, 0.4, 0.3, 0.5], dtype=torch.float64)
    states = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    weight = (p**states * (1 - p) ** (1 - states)).prod(1)
    counts = torch.stack([weight[states.sum(1) == k].sum() for k in range(5)])
    torch.testing.assert_close(active_counts(p), counts)
    few = states.sum(1) <= 2
    assert few_active(p, 2) == pytest.approx(float(weight[few].sum()))
    truncated = (weight[few, None] * states[few]).sum(0) / weight[few].sum()
    torch.testing.assert_close(corrected_activities(p, 2, truncated), p)


def test_a_prior_does_not_run_away():
    """Every point at the limit: the correction would ask for ever more active units."""
    assert corrected_activity(48, 0.5, 3, 3 / 48) == 3 / 48
    mean = torch.full((48,), 3 / 48, dtype=torch.float64)
    assert torch.equal(corrected_activities(torch.full_like(mean, 0.5), 3, mean), mean)


@pytest.mark.parametrize("few", [True, False])
def test_sets_are_found_and_pooled(few):
    n, states, d, base = 9, 5, 4, 4 if few else 3000
    index = torch.randint(base, (n, states, 2)).sort(2).values
    sets = ActiveSets(index, base)
    assert torch.equal(sets.rows[sets.inverse], index)
    y = torch.randn(n, d, dtype=torch.float64)
    q = torch.rand(n, states, dtype=torch.float64)
    means = torch.randn(len(sets.rows), d, dtype=torch.float64)
    for dense in (True, False):
        sets._dense = lambda dense=dense: dense
        torch.testing.assert_close(sets.dot(y, means), torch.einsum("nd,nsd->ns", y, means[sets.inverse]))
        torch.testing.assert_close(sets.expect(q, means), torch.einsum("ns,nsd->nd", q, means[sets.inverse]))
        weight, total = sets.pool(q, y)
        for u in range(len(sets.rows)):
            here = q * (sets.inverse == u)
            torch.testing.assert_close(weight[u], here.sum())
            torch.testing.assert_close(total[u], (here.sum(1)[:, None] * y).sum(0))


def test_sets_with_many_units_take_the_slow_way():
    index = torch.randint(1 << 20, (3, 4, 5)).sort(2).values
    assert torch.equal(ActiveSets(index, 1 << 20).rows[ActiveSets(index, 1 << 20).inverse], index)
