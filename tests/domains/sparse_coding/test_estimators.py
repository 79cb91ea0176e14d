"""The estimators: scikit-learn's battery, recovered dictionaries, posteriors, and what is refused."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gossamer.domains.sparse_coding import (
    Anneal,
    BinarySparseCoding,
    DiscreteSparseCoding,
    MaximalCauses,
    MaxMagnitudeCauses,
    SparseCodingWarning,
    SpikeSlabSparseCoding,
    TernarySparseCoding,
    bar_dictionary,
    bars,
    match,
)
from gossamer.errors import ConfigError, DataError, NumericsError, ShapeError

ALL = [
    BinarySparseCoding,
    TernarySparseCoding,
    DiscreteSparseCoding,
    MaximalCauses,
    MaxMagnitudeCauses,
    SpikeSlabSparseCoding,
]
EASY = bars(400, side=3, seed=1)


# Two components, as the battery's data have few points. None of its checks is left out here; scikit-learn itself
# skips the one that needs SCIPY_ARRAY_API in the environment, and runs those for classifiers and regressors on neither.
@parametrize_with_checks([model(2, steps=3) for model in ALL])
def test_the_battery_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparseCodingWarning)  # the battery scales some columns unevenly
        check(estimator)


@pytest.fixture(scope="module")
def fitted():
    return BinarySparseCoding(6, steps=60, random_state=0).fit(EASY.Y)


def test_small_bars_are_found(fitted):
    found = match(fitted.W_, EASY.W)
    assert found.error.max() < 1
    assert fitted.prior_ == pytest.approx(0.2, abs=0.03)
    assert fitted.sigma_ == pytest.approx(2, abs=0.1)
    assert len(fitted.history_["log_likelihood"]) == fitted.n_iter_ == 60
    assert fitted.score(EASY.Y) == pytest.approx(fitted.log_likelihood_)


@pytest.mark.parametrize("model", [MaximalCauses, MaxMagnitudeCauses])
def test_bars_that_hide_each_other_are_found(model):
    data = bars(400, side=3, combine="max", seed=2)
    coder = model(6, steps=60, restarts=3, random_state=0).fit(data.Y)
    assert match(coder.W_, data.W).error.max() < 1
    assert coder.sigma_ == pytest.approx(2, abs=0.15)


def test_signed_and_graded_bars_are_found():
    signed = bars(500, side=4, states=(-1, 0, 1), probabilities=(0.1, 0.8, 0.1), seed=0)
    coder = TernarySparseCoding(8, steps=60, restarts=2, random_state=0).fit(signed.Y)
    assert match(coder.W_, signed.W, signed=True).error.max() < 1
    graded = bars(500, side=3, states=(0, 1, 2), probabilities=(0.8, 0.15, 0.05), seed=0)
    coder = DiscreteSparseCoding(6, states=(0, 1, 2), steps=60, random_state=0).fit(graded.Y)
    assert match(coder.W_, graded.W).error.max() < 1
    np.testing.assert_allclose(coder.probabilities_, [0.8, 0.15, 0.05], atol=0.03)


def test_the_slab_finds_directions():
    random = np.random.default_rng(0)
    W = bar_dictionary(3, 1.0) / np.sqrt(3)
    codes = (random.random((800, 6)) < 0.2) * random.normal(size=(800, 6)) * 5
    Y = codes @ W.T + 0.3 * random.normal(size=(800, 9))
    coder = SpikeSlabSparseCoding(6, steps=60, restarts=2, random_state=0).fit(Y)
    order = match(coder.W_ / np.linalg.norm(coder.W_, axis=0), W, signed=True)
    assert order.cosine.min() > 0.97
    assert coder.sigma_ == pytest.approx(0.3, abs=0.05)
    assert coder.prior_.shape == (6,)


def test_binary_is_discrete_with_two_states_bit_for_bit():
    one = BinarySparseCoding(6, n_candidates=5, max_active=3, steps=20, random_state=0, anneal={}).fit(EASY.Y)
    two = DiscreteSparseCoding(6, states=(0, 1), n_candidates=5, max_active=3, steps=20, random_state=0, anneal={}).fit(
        EASY.Y
    )
    assert np.array_equal(one.W_, two.W_)
    assert (one.prior_, one.sigma_) == (two.prior_, two.sigma_)
    assert two.probabilities_[0] == pytest.approx(1 - one.prior_)


def test_the_posterior_names_the_active_bars(fitted):
    post = fitted.posterior(EASY.Y, top_k=4)
    order = match(fitted.W_, EASY.W).order
    assert post.states.shape == (400, 4, 6)
    assert (np.diff(post.probs, axis=1) <= 0).all()
    assert (post.map[:, order] == EASY.S).mean() > 0.97
    np.testing.assert_allclose(post.mean, fitted.transform(EASY.Y))
    np.testing.assert_allclose(post.marginals, post.mean)  # of binary units
    np.testing.assert_allclose(post.evidence, fitted.score_samples(EASY.Y))
    everything = fitted.posterior(EASY.Y[:5], top_k=10_000)
    np.testing.assert_allclose(everything.probs.sum(1), 1)
    exact = everything.probs[:, :, None] * everything.states
    np.testing.assert_allclose(exact.sum(1), everything.mean)


def test_an_adaptive_posterior_widens_where_it_is_too_narrow(fitted):
    narrow = clone(fitted).set_params(n_candidates=2, max_active=1, init={"W": fitted.W_, "sigma": 2.0}, learn=())
    narrow.set_params(steps=1)
    with pytest.warns(SparseCodingWarning, match="max_active=1"):
        narrow.fit(EASY.Y)
    crowded = (EASY.S.sum(1) > 1).sum()
    assert narrow.posterior(EASY.Y).saturated.sum() > crowded
    wide = narrow.posterior(EASY.Y, adaptive=True, limits=(6, 6))
    assert not wide.saturated.any()
    assert (wide.max_active > 1).sum() >= crowded - 5
    order = match(fitted.W_, EASY.W).order
    assert (wide.map[:, order] == EASY.S).mean() > 0.95
    with pytest.raises(ConfigError, match="limits"):
        narrow.posterior(EASY.Y, adaptive=True, limits=(7, 7))


def test_missing_values_are_learned_from_and_filled_in():
    Y = EASY.Y.copy()
    hidden = np.random.default_rng(0).random(Y.shape) < 0.2
    Y[hidden] = np.nan
    coder = BinarySparseCoding(6, steps=60, missing=True, restarts=2, random_state=0).fit(Y)
    assert match(coder.W_, EASY.W).error.max() < 1
    clean = EASY.S @ EASY.W.T
    error = (coder.reconstruct(Y) - clean)[hidden]
    assert np.sqrt((error**2).mean()) < 0.5 * clean[hidden].std()
    with pytest.raises(DataError, match="missing=True"):
        BinarySparseCoding(6, steps=1).fit(Y)
    with pytest.raises(ConfigError, match="MaximalCauses cannot learn from missing"):
        MaximalCauses(6, missing=True).fit(Y)


def test_what_is_not_learned_stays():
    sigma = 1.5
    coder = BinarySparseCoding(6, steps=5, learn=("prior",), init={"W": EASY.W, "sigma": sigma}).fit(EASY.Y)
    assert np.array_equal(coder.W_, EASY.W)
    assert coder.sigma_ == sigma
    assert coder.prior_ == pytest.approx(0.2, abs=0.05)


def test_it_stops_when_nothing_moves():
    coder = BinarySparseCoding(6, steps=200, tol=1e-6, anneal={}, random_state=0).fit(EASY.Y)
    assert coder.n_iter_ < 200


def test_the_likeliest_restart_is_kept():
    options = {"n_components": 6, "steps": 20, "anneal": {}, "random_state": 3}
    several = BinarySparseCoding(**options, restarts=4).fit(EASY.Y)
    assert several.log_likelihood_ >= BinarySparseCoding(**options).fit(EASY.Y).log_likelihood_


@pytest.mark.parametrize("curve", ["data_noise", "W_noise", "pi_noise", "sigma_noise", "partial"])
@pytest.mark.parametrize("model", [TernarySparseCoding, MaxMagnitudeCauses, SpikeSlabSparseCoding])
def test_noise_and_mini_batches_leave_legal_parameters(model, curve):
    coder = model(4, steps=6, anneal={curve: 0.5}, random_state=0).fit(EASY.Y)
    assert np.isfinite(coder.W_).all()
    assert np.all(np.asarray(coder.sigma_) > 0)
    assert np.all((np.asarray(coder.prior_) > 0) & (np.asarray(coder.prior_) < 1))
    plain = model(4, steps=6, anneal={}, random_state=0).fit(EASY.Y)
    assert not np.array_equal(coder.W_, plain.W_)


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
def test_noise_of_every_shape(noise):
    coder = SpikeSlabSparseCoding(4, noise=noise, steps=20, anneal={}, random_state=0).fit(EASY.Y)
    assert np.shape(coder.sigma_) == {"scalar": (), "diagonal": (9,), "full": (9, 9)}[noise]
    assert coder.posterior(EASY.Y[:3]).states.shape == (3, 10, 4)


def test_single_precision_is_close_to_double(fitted):
    coder = clone(fitted).set_params(dtype="float32").fit(EASY.Y)
    assert coder.params_["W"].dtype is torch.float32
    assert match(coder.W_, EASY.W).error.max() < 1
    assert coder.log_likelihood_ == pytest.approx(fitted.log_likelihood_, abs=0.05)


def test_tensors_and_pipelines():
    pipeline = make_pipeline(StandardScaler(), BinarySparseCoding(3, steps=5, random_state=0))
    assert pipeline.fit_transform(EASY.Y).shape == (400, 3)
    assert next(iter(pipeline.get_feature_names_out())) == "binarysparsecoding0"
    one = BinarySparseCoding(3, steps=5, random_state=0).fit(torch.from_numpy(EASY.Y))
    assert np.array_equal(one.W_, BinarySparseCoding(3, steps=5, random_state=0).fit(EASY.Y).W_)


def test_samples_look_like_the_data(fitted):
    Y, S = fitted.sample(5000, random_state=0)
    assert Y.shape == (5000, 9)
    np.testing.assert_allclose(Y.mean(0), EASY.Y.mean(0), atol=0.5)
    assert S.mean() == pytest.approx(fitted.prior_, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_candidates": 7}, "max_active=5, n_candidates=7, n_components=6"),
        ({"n_candidates": 2, "max_active": 3}, "max_active=3, n_candidates=2"),
        ({"max_active": 0}, "max_active must be a positive integer"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"restarts": 1.5}, "restarts must be a positive integer"),
        ({"learn": ("w",)}, "unknown part to learn 'w'"),
        ({"dtype": "half"}, "unknown dtype 'half'"),
        ({"device": "nonsense"}, "cannot use the device 'nonsense'"),
        ({"anneal": {"Temp": 1.0}}, "unknown annealing parameter 'Temp'"),
        ({"init": {"mu": 1.0}}, "unknown parameter 'mu'"),
        ({"init": {"W": np.ones((2, 2))}}, "init of W must be finite and of shape"),
        ({"init": {"sigma": 0.0}}, "init of sigma must be positive"),
        ({"init": {"prior": [0.5, 0.4]}}, "init of prior must be positive and sum to 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        BinarySparseCoding(**({"n_components": 6, "steps": 2} | options)).fit(EASY.Y)


@pytest.mark.parametrize("states", [(1.0, 2.0), (0.0,), (0.0, 1.0, 1.0), (0.0, float("inf"))])
def test_wrong_states_are_named(states):
    with pytest.raises(ConfigError, match="states must be two or more different finite numbers with 0"):
        DiscreteSparseCoding(3, states=states).fit(EASY.Y)


def test_other_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="penalty"):
        DiscreteSparseCoding(3, penalty=1.0).fit(EASY.Y)
    with pytest.raises(ConfigError, match="unknown noise 'white'"):
        SpikeSlabSparseCoding(3, noise="white").fit(EASY.Y)
    with pytest.raises(ConfigError, match="missing values need noise"):
        SpikeSlabSparseCoding(3, noise="full", missing=True).fit(EASY.Y)
    with pytest.raises(ConfigError, match="init of pi must lie between"):
        MaximalCauses(3, init={"pi": 1.0}).fit(EASY.Y)
    with pytest.raises(DataError, match=r"\d+ states, whose tables take"):
        BinarySparseCoding(60, n_candidates=40, max_active=12).fit(EASY.Y)


def test_a_penalty_keeps_units_silent():
    coder = DiscreteSparseCoding(6, states=(0, 1), penalty=0.9, steps=20, random_state=0).fit(EASY.Y)
    assert coder.probabilities_[0] >= 0.9 - 1e-9


@pytest.mark.parametrize(
    "spoil",
    [
        lambda Y: np.where(Y.max() == Y, np.nan, Y),
        lambda Y: np.where(Y.max() == Y, np.inf, Y),
        lambda Y: Y[0],
        lambda Y: Y[:1],
        lambda Y: Y[:, :0],
        lambda Y: np.ones_like(Y),
        lambda Y: 1e200 * Y,
        lambda Y: np.full_like(Y, 3.0).astype(str) + "x",
    ],
)
@pytest.mark.parametrize("model", [BinarySparseCoding, SpikeSlabSparseCoding])
def test_wrong_data_are_refused(model, spoil):
    with pytest.raises((DataError, NumericsError)):
        model(3, steps=2).fit(spoil(EASY.Y))


def test_other_columns_are_refused_later(fitted):
    with pytest.raises(DataError, match="expecting 9 features"):
        fitted.transform(EASY.Y[:, :5])


def test_remarks():
    with pytest.warns(SparseCodingWarning, match="fewer than the 6 components"):
        BinarySparseCoding(6, steps=2).fit(EASY.Y[:5])
    with pytest.warns(SparseCodingWarning, match="standard deviations of the columns"):
        BinarySparseCoding(3, steps=2).fit(EASY.Y * np.geomspace(1, 1e6, 9))
    with pytest.warns(SparseCodingWarning, match="use MaxMagnitudeCauses"):
        MaximalCauses(3, steps=2).fit(-EASY.Y)
    W = EASY.W.copy()
    W[0, 0] = -3
    with pytest.warns(SparseCodingWarning, match="values of the initial W were moved"):
        MaximalCauses(6, steps=2, init={"W": W}).fit(EASY.Y)


def test_more_active_units_than_allowed_are_remarked_on():
    crowded = bars(300, side=3, probabilities=(0.3, 0.7), seed=0)
    coder = BinarySparseCoding(6, n_candidates=4, max_active=2, steps=10, init={"W": crowded.W}, learn=("sigma",))
    with pytest.warns(SparseCodingWarning, match="max_active=2 active units .*raise max_active"):
        coder.fit(crowded.Y)
    assert coder.saturated_ > 0.5


def test_an_all_zero_column_is_drawn_anew(caplog):
    W = EASY.W.copy()
    W[:, 2] = 0
    coder = BinarySparseCoding(6, steps=40, anneal={}, init={"W": W}, random_state=0).fit(EASY.Y)
    assert (np.abs(coder.W_).sum(0) > 0).all()
    assert "1 all-zero columns of the dictionary drawn anew" in caplog.text


def test_matching():
    W = bar_dictionary(3)
    order = np.array([2, 0, 1, 5, 4, 3])
    found = match(-W[:, order] + 0.1, W, signed=True)
    assert np.array_equal(order[found.order], np.arange(6))
    np.testing.assert_allclose(found.error, 0.1)
    with pytest.raises(ShapeError, match="cannot match"):
        match(W[:, :3], W)
    with pytest.raises(ConfigError, match="unknown way to combine"):
        bars(3, combine="min")
    with pytest.raises(ConfigError, match="summing to 1"):
        bars(3, probabilities=(0.5, 0.6))


def test_annealing_objects_and_mappings_are_the_same():
    points = ((0, 3.0), (0.5, 1.0))
    fits = [
        BinarySparseCoding(3, steps=5, anneal=a, random_state=0).fit(EASY.Y) for a in (Anneal(T=points), {"T": points})
    ]
    assert np.array_equal(fits[0].W_, fits[1].W_)
