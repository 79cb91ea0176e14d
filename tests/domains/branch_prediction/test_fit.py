"""Sparse models: optimal, equal to scikit-learn's, found by forward selection, learnt online."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.domains.branch_prediction import Trace, Window
from gossamer.domains.branch_prediction.features import columns, matrix, occurrences
from gossamer.domains.branch_prediction.fit import Linear, fit_l1, greedy_path, penalty_path, refit
from gossamer.domains.branch_prediction.online import CumulativeL1, learn_online
from gossamer.domains.branch_prediction.streams import majority_after_noise
from gossamer.errors import ConfigError, NumericsError, ShapeError


def problem(seed: int, n: int = 300, features: int = 40):
    """+-1 inputs; the outcome follows three of them, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], (n, features))
    y = np.sign(x[:, [3, 5, 7]] @ [1.0, 0.8, -0.6] + 0.3 + 0.7 * rng.normal(size=n))
    return torch.from_numpy(x), torch.from_numpy(y)


def gradient(x, y, model, loss):
    margin = x @ model.weights + model.bias
    slope = -y * torch.sigmoid(-y * margin) if loss == "logistic" else margin - y
    return x.T @ slope / len(y), float(slope.mean())


@given(seed=st.integers(0, 100), penalty=st.sampled_from([0.002, 0.02, 0.1]))
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_the_optimum_satisfies_its_conditions(loss, seed, penalty):
    x, y = problem(seed)
    model = fit_l1(x, y, penalty, loss=loss)
    slope, bias_slope = gradient(x, y, model, loss)
    zero = model.weights == 0
    assert bool((slope[zero].abs() <= penalty * 1.0001).all())
    torch.testing.assert_close(slope[~zero], -penalty * model.weights[~zero].sign(), atol=1e-6, rtol=0)
    assert abs(bias_slope) < 1e-6
    assert model.gap <= 1e-3 * penalty


@pytest.mark.parametrize("penalty", [0.005, 0.05])
def test_logistic_equals_scikit_learn(penalty):
    from sklearn.linear_model import LogisticRegression

    x, y = problem(1)
    settings = {"l1_ratio": 1.0, "C": 1 / (penalty * len(y)), "solver": "saga", "tol": 1e-8, "max_iter": 20_000}
    other = LogisticRegression(random_state=0, **settings).fit(x.numpy(), y.numpy())
    model = fit_l1(x, y, penalty)
    np.testing.assert_allclose(model.weights.numpy(), other.coef_[0], atol=1e-4)
    assert model.bias == pytest.approx(float(other.intercept_[0]), abs=1e-4)


def test_lasso_equals_scikit_learn():
    from sklearn.linear_model import Lasso

    x, y = problem(2)
    other = Lasso(alpha=0.05, tol=1e-10, max_iter=100_000).fit(x.numpy(), y.numpy())
    model = fit_l1(x, y, 0.05, loss="squared")
    np.testing.assert_allclose(model.weights.numpy(), other.coef_, atol=1e-6)
    assert model.bias == pytest.approx(float(other.intercept_), abs=1e-6)


def test_a_large_penalty_leaves_no_weight():
    x, y = problem(3)
    empty = fit_l1(x, y, 10.0)
    largest = float(gradient(x, y, empty, "logistic")[0].abs().max())
    assert fit_l1(x, y, largest * 1.001).support == ()
    assert fit_l1(x, y, largest * 0.999).support != ()
    share = float((y > 0).double().mean())
    assert empty.bias == pytest.approx(np.log(share / (1 - share)), abs=1e-5)


def test_a_start_nearby_changes_nothing():
    x, y = problem(4)
    warm = fit_l1(x, y, 0.01, start=fit_l1(x, y, 0.05))
    torch.testing.assert_close(warm.weights, fit_l1(x, y, 0.01).weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("most", [1, 5, 50])
def test_the_path_never_has_too_many_weights(most):
    x, y = problem(5)
    sizes = [len(model.support) for model in penalty_path(x, y, most)]
    assert sizes
    assert max(sizes) <= most
    assert sizes[0] == min(sizes)
    assert [len(m.support) for m in greedy_path(x, y, most)][-1] == min(most, 40)


def test_forward_selection_starts_with_what_matters():
    x, y = problem(6, n=2000)
    assert set(greedy_path(x, y, 3)[-1].support) == {3, 5, 7}


def test_refitting_has_no_slope_on_its_support():
    x, y = problem(7)
    model = refit(x, y, (3, 5, 7), ridge=1e-6)
    slope, bias_slope = gradient(x, y, model, "logistic")
    assert float(slope[[3, 5, 7]].abs().max()) < 1e-4
    assert abs(bias_slope) < 1e-4
    separable = refit(x, x[:, 3].sign(), (3,))
    assert torch.isfinite(separable.weights).all()


def test_online_learning_comes_to_the_batch_optimum():
    x, y = problem(8, n=400, features=8)
    model = CumulativeL1(8, penalty=0.05, rate=0.5, horizon=500)
    rows, outcomes = x.numpy(), y.numpy()
    mean = np.zeros(8)
    for step, i in enumerate(np.random.default_rng(0).integers(0, len(rows), 40_000)):
        model.learn(rows[i], float(outcomes[i]))
        if step >= 20_000:  # the last steps still jitter around the optimum
            mean += model.weights / 20_000
    batch = fit_l1(x, y, 0.05)
    np.testing.assert_allclose(mean, batch.weights.numpy(), atol=0.03)
    assert np.count_nonzero(model.weights) == len(batch.support)


def test_the_online_penalty_stays_within_its_bounds():
    model = CumulativeL1(4)
    for _ in range(40):
        model.adapt(50)
    assert model.penalty == 1e-5
    model.weights[:] = 1
    for _ in range(40):
        model.adapt(1)
    assert model.penalty == 0.1


def test_online_learning_finds_the_voters():
    stream = majority_after_noise(1500, gap=10)
    run = learn_online(stream.trace, stream.pc, Window(64, 4))
    top = set(np.argsort(-np.abs(run.model.weights))[:3] + 1)
    assert top == set(stream.positions)
    assert run.right[-500:].mean() > 0.85


def test_features_by_hand():
    trace = Trace(np.array([1, 2, 1, 2, 1], np.uint64), np.array([1, 0, 1, 1, 0], np.uint8))
    at, window = occurrences(trace, 1), Window(3, 2)
    expected = [[0, 0, 0, 0, 0], [-1, 1, 0, 1, 0], [1, 1, -1, 1, 1]]
    assert matrix(trace, at, slice(0, 3), window).tolist() == expected
    assert columns(trace, at, (0, 2, 3, 4), window).tolist() == [[row[k] for k in (0, 2, 3, 4)] for row in expected]
    assert columns(trace, at, (), window).shape == (3, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: fit_l1(x, y, 0.0), ConfigError, "penalty must be positive"),
        (lambda x, y: fit_l1(x, y, 0.1, loss="hinge"), ConfigError, "unknown loss 'hinge'"),
        (lambda x, y: fit_l1(x, y[:-1], 0.1), ShapeError, "needs x"),
        (lambda x, y: fit_l1(x * float("nan"), y, 0.1), NumericsError, "NaN"),
        (lambda x, y: penalty_path(x, y, 0), ConfigError, "max_nonzero must be at least 1"),
        (lambda x, y: greedy_path(x, y, 0), ConfigError, "max_nonzero must be at least 1"),
        (lambda x, y: CumulativeL1(0), ConfigError, "must be positive"),
        (lambda x, y: Window(0, 0), ConfigError, "not both 0"),
        (lambda x, y: Window(10, 65), ConfigError, "local <= 64"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(*problem(0))


def test_a_score_reads_the_support_alone():
    model = Linear(torch.tensor([0.0, 2.0]), 0.5, 0.1)
    assert model.score(torch.tensor([[float("nan"), 1.0]])).tolist() == [2.5]
