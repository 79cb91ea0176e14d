"""Calibration measures by hand, in known limits, and against scikit-learn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from gossamer.errors import ConfigError
from gossamer.metrics.calibration import brier, ece, fit_temperature, nll

G = torch.Generator().manual_seed(1)


def calibrated(n, classes=4, scale=1.0):
    """Logits whose softmax at temperature `scale` is the true label distribution."""
    logits = 2 * torch.randn(n, classes, generator=G, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=G)[:, 0]
    return logits * scale, labels


def test_nll_and_brier_equal_scikit_learn():
    logits, labels = calibrated(300, 2)
    p = logits.softmax(1)
    assert nll(logits, labels) == pytest.approx(log_loss(labels, p))
    # scikit-learn's binary score counts one of the two equal terms
    assert brier(logits, labels) == pytest.approx(2 * brier_score_loss(labels, p[:, 1]))
    assert nll(logits.log_softmax(1), labels) == pytest.approx(nll(logits, labels))


def test_ece_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.55, 0.45]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0])
    # width, 2 bins: all four lie in (0.5, 1]; |0.75 - 0.7125|. mass: {.55, .6} and {.8, .9}
    assert ece(p.log(), labels, bins=2) == pytest.approx(0.0375)
    assert ece(p.log(), labels, bins=2, spacing="mass") == pytest.approx((0.85 + 0.7) / 4)
    # width, 10 bins: (.5, .6] holds .6 and .55, then .8 and .9 alone
    assert ece(p.log(), labels, bins=10) == pytest.approx((0.85 + 0.8 + 0.1) / 4)


@pytest.mark.parametrize("spacing", ["width", "mass"])
def test_ece_is_small_when_calibrated_and_large_when_sharpened(spacing):
    logits, labels = calibrated(20_000)
    assert ece(logits, labels, spacing=spacing) < 0.015
    assert ece(3 * logits, labels, spacing=spacing) > 0.1


@given(st.integers(1, 30), st.sampled_from(["width", "mass"]))
def test_ece_stays_between_the_overall_gap_and_the_mean_gap(bins, spacing):
    logits, labels = calibrated(57)
    confidence, predicted = logits.softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    got = ece(logits, labels, bins, spacing)
    assert abs(float(gap.mean())) - 1e-12 <= got <= float(gap.abs().mean()) + 1e-12


def test_temperature_is_recovered_and_minimises_the_loss():
    logits, labels = calibrated(20_000, scale=2.5)
    t = fit_temperature(logits, labels)
    assert t == pytest.approx(2.5, rel=0.05)
    assert all(nll(logits / t, labels) <= nll(logits / (t * f), labels) for f in (0.99, 1.01))


def test_temperature_is_bounded_on_separable_data():
    assert fit_temperature(torch.eye(2), torch.tensor([0, 1])) == pytest.approx(0.01)
    assert fit_temperature(torch.eye(2), torch.tensor([1, 0])) == pytest.approx(100)


def test_limits():
    assert brier(torch.tensor([[0.0, 100.0]]), torch.tensor([0])) == pytest.approx(2.0)
    assert nll(torch.zeros(1, 8), torch.tensor([3])) == pytest.approx(math.log(8))


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="bins must be at least 1, got 0"):
        ece(torch.zeros(1, 2), torch.tensor([0]), bins=0)
    with pytest.raises(ConfigError, match="did you mean 'mass'"):
        ece(torch.zeros(1, 2), torch.tensor([0]), spacing="mas")  # type: ignore[arg-type]
