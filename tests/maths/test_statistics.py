"""Intervals and equivalence against scipy, hand values and coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.maths.statistics import bootstrap, equivalence, mean_sd, paired_interval, t_interval

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def test_mean_sd_by_hand():
    assert mean_sd([2.0, 4.0, 9.0]) == (5.0, math.sqrt(13))
    mean, sd = mean_sd([3.0])
    assert mean == 3.0
    assert math.isnan(sd)


def test_t_interval_by_table():
    got = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * math.sqrt(2.5) / math.sqrt(5)  # t quantile 0.975 with 4 degrees of freedom
    assert got.low == pytest.approx(3 - half, rel=1e-8)
    assert got.high == pytest.approx(3 + half, rel=1e-8)
    assert got.n == 5


def test_a_single_run_has_no_interval():
    got = t_interval([0.7])
    assert got.mean == 0.7
    assert math.isnan(got.low)
    assert math.isnan(got.high)


@given(values)
def test_interval_is_symmetric_and_widens_with_confidence(sample):
    narrow, wide = t_interval(sample, 0.8), t_interval(sample, 0.99)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [t_interval(rng.normal(5, 2, 6).tolist(), 0.9) for _ in range(600)]
    share = np.mean([e.low <= 5 <= e.high for e in hits])
    assert 0.87 <= share <= 0.93


def test_pairing_removes_the_shared_part():
    shared = np.array([10.0, -20.0, 5.0, 40.0])
    got = paired_interval((shared + 1 + np.array([0.1, -0.1, 0.1, -0.1])).tolist(), shared.tolist())
    assert 0.7 < got.low < 1 < got.high < 1.3


@given(values, st.floats(0.1, 10))
@settings(max_examples=40)
def test_equivalence_equals_scipys_one_sided_tests(sample, margin):
    a = np.array(sample)
    b = a + np.linspace(-1, 1, a.size)
    gaps = a - b
    got = equivalence(a.tolist(), b.tolist(), margin)
    p_low = stats.ttest_1samp(gaps, -margin, alternative="greater").pvalue
    p_high = stats.ttest_1samp(gaps, margin, alternative="less").pvalue
    assert got.p == pytest.approx(max(p_low, p_high), abs=1e-9)
    assert got.equivalent == (got.p < 0.05)


def test_welch_equals_scipy():
    a, b = [1.0, 2.0, 3.5, 1.5], [1.2, 2.2, 2.9]
    got = equivalence(a, b, 2.0, paired=False)
    low = stats.ttest_ind(np.array(a) + 2.0, b, equal_var=False, alternative="greater").pvalue
    high = stats.ttest_ind(np.array(a) - 2.0, b, equal_var=False, alternative="less").pvalue
    assert got.p == pytest.approx(max(low, high))


def test_interval_and_verdict_of_equivalence_agree():
    for margin in (0.05, 0.2, 1.0):
        got = equivalence([1.0, 1.1, 0.9, 1.05], [1.0, 1.0, 1.0, 1.0], margin)
        assert got.equivalent == (-margin < got.low and got.high < margin)


def test_equal_constants_are_equivalent_and_distant_ones_are_not():
    assert equivalence([1.0, 1.0], [1.0, 1.0], 0.1).equivalent
    assert not equivalence([2.0, 2.0], [1.0, 1.0], 0.1).equivalent


def test_bootstrap_matches_theory_for_the_mean_and_repeats():
    sample = np.random.default_rng(1).normal(0, 1, 400).tolist()
    got = bootstrap(sample)
    exact = t_interval(sample)
    assert got == bootstrap(sample)
    assert got.low == pytest.approx(exact.low, abs=0.02)
    assert got.high == pytest.approx(exact.high, abs=0.02)
    assert bootstrap([1.0, 2.0, 30.0], np.median).mean == 2.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mean_sd([]), ShapeError, "at least 1 values"),
        (lambda: t_interval([1.0, float("nan")]), NumericsError, "finite, got nan"),
        (lambda: t_interval([1.0, 2.0], 1.0), ConfigError, "confidence must lie strictly between 0 and 1"),
        (lambda: paired_interval([1.0], [1.0, 2.0]), ShapeError, "equal lengths, got 1 and 2"),
        (lambda: equivalence([1.0, 2.0], [1.0, 2.0], 0.0), ConfigError, "margin must be positive"),
        (lambda: equivalence([1.0], [1.0], 1.0), ShapeError, "at least 2"),
        (lambda: bootstrap([1.0], resamples=0), ConfigError, "resamples"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
