"""Every native predictor equals its plain reference bit by bit, and knows what it must know."""

import bz2
from collections import deque
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer import data
from gossamer.domains.branch_prediction import (
    PREDICTORS,
    TAGE,
    TAGESCL,
    Bimodal,
    Gshare,
    HashedPerceptron,
    Perceptron,
    Static,
    Tournament,
    Trace,
    build,
    read,
    simulate,
)
from gossamer.domains.branch_prediction.predictors import geometric
from gossamer.domains.branch_prediction.reference import play
from gossamer.domains.branch_prediction.reference.linear import fold
from gossamer.domains.branch_prediction.streams import coin, majority_after_noise, periodic
from gossamer.errors import ConfigError, DataError
from gossamer.kernels import native

# Tiny, so that everything collides, saturates and decays within a few thousand branches.
TINY = [
    Static(0),
    Bimodal(3),
    Gshare(6, 5),
    Tournament(3, 4, 5),
    Perceptron(7, 0),
    Perceptron(7, 20),
    HashedPerceptron(6, 5, 4, 2, 70),
    HashedPerceptron(1, 5),
    TAGE(0),
    TAGE(1, 3, 5, 9, log_base=4),
    TAGE(5, 4, 3, 37, 6, 4),
    TAGE(13, 3, 3, 200, 9, 5),
    TAGESCL(5, 4, 3, 37, 6, 4, 2, 4, (3, 17), (2, 9, 24)),
    TAGESCL(0, 4, log_base=4),
]
needs_native = pytest.mark.skipif(native.extension() is None, reason="installed without the compiled kernels")


def program(seed: int, count: int) -> Trace:
    """Loops, correlations and coins of a few branches."""
    rng = np.random.default_rng(seed)
    pcs = rng.integers(0, 1 << 45, 12).astype(np.uint64)
    which = np.where(rng.random(count) < 0.5, np.arange(count) % 12, rng.integers(0, 12, count))
    taken = np.where(which < 4, np.arange(count) % 7 < 5, rng.random(count) < which / 12)
    return Trace(pcs[which], taken.astype(np.uint8))


@needs_native
@pytest.mark.parametrize("predictor", TINY, ids=repr)
@given(seed=st.integers(0, 1000))
def test_native_equals_the_reference(predictor, seed):
    trace = program(seed, 400)
    quiet = (np.random.default_rng(seed).random(len(trace)) < 0.2).astype(np.uint8)
    np.testing.assert_array_equal(predictor.play(trace, quiet), play(predictor, trace, quiet))


@needs_native
@pytest.mark.parametrize("predictor", TINY, ids=repr)
def test_native_equals_the_reference_for_long(predictor):
    trace = program(7, 5000)
    np.testing.assert_array_equal(predictor.play(trace), play(predictor, trace))


@needs_native
def test_without_the_extension_the_reference_runs():
    trace = program(3, 300)
    with native.using("none"):
        plain = TINY[-2].play(trace)
    np.testing.assert_array_equal(plain, TINY[-2].play(trace))


ANCHORS = {"fp_1": 12765, "fp_2": 40641, "int_1": 521958, "int_2": 15776, "mm_1": 201871, "mm_2": 259929}
STATIC = {"fp_1": 12.128, "fp_2": 42.350, "int_1": 44.136, "int_2": 5.508, "mm_1": 50.353, "mm_2": 37.045}


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("name", ANCHORS)
def test_the_published_misses_of_gshare(name):
    try:
        path = data.find("branch-traces", f"{name}.bz2") / f"{name}.bz2"
    except DataError as error:
        pytest.skip(str(error))
    trace = read(path)
    assert simulate(trace, Gshare(13, 13)).misses == ANCHORS[name]
    assert 100 * simulate(trace, Static()).miss_rate == pytest.approx(STATIC[name], abs=6e-4)


def test_gshare_by_hand():
    # index pc xor history, two bits wide: 0, 1, 3, 3, 3; every counter starts at weakly not taken
    trace = Trace(np.zeros(5, np.uint64), np.ones(5, np.uint8))
    assert Gshare(2, 2).play(trace).tolist() == [0, 0, 0, 1, 1]


def test_no_tagged_table_is_bimodal():
    trace = program(1, 3000)
    np.testing.assert_array_equal(TAGE(0, log_base=5).play(trace), Bimodal(5).play(trace))


def test_a_perceptron_without_history_counts_its_bias():
    trace = coin(400, 0.7, branches=3, seed=5)
    weights, expected = [0] * 3, []
    for pc, taken in zip(trace.pc.tolist(), trace.taken.tolist(), strict=True):
        row = pc % 3
        expected.append(weights[row] >= 0)
        if expected[-1] != taken or abs(weights[row]) <= 14:
            weights[row] += 1 if taken else -1
    assert Perceptron(3, 0).play(trace).tolist() == expected


@given(outcomes=st.lists(st.integers(0, 1), max_size=60), length=st.integers(0, 40), width=st.integers(1, 12))
def test_folding_lands_every_bit_where_it_belongs(outcomes, length, width):
    expected = 0
    for j, bit in enumerate(outcomes[:length]):
        expected ^= bit << (j % width)
    assert fold(deque(outcomes), length, width) == expected


@pytest.mark.parametrize("name", ["gshare", "tournament", "tage", "tage-large", "tage-sc-l"])
@pytest.mark.parametrize("pattern", ["TN", "TTTTTTTN", "TTNTNNT"])
def test_a_repeated_pattern_is_learnt(name, pattern):
    result = simulate(periodic(pattern, 6000 // len(pattern)), PREDICTORS[name], 0.5)
    assert result.misses == 0


def test_bimodal_cannot_alternate():
    assert simulate(periodic("TN", 500), Bimodal()).miss_rate >= 0.5


@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "static"])
def test_nobody_predicts_a_coin(name):
    assert simulate(coin(100_000, branches=5), PREDICTORS[name]).miss_rate == pytest.approx(0.5, abs=0.01)


def test_a_loop_longer_than_the_history_needs_the_loop_predictor():
    noise = coin(200 * 120, seed=3).taken.reshape(200, 120)
    pc = np.full((200, 240), 0x400, np.uint64)
    pc[:, 1::2] = 0x911  # a coin between every two turns of the loop hides the turns from a short history
    taken = np.ones((200, 240), np.uint8)
    taken[:, 1::2], taken[:, 238] = noise, 0
    trace = Trace(pc.ravel(), taken.ravel())

    def exits(predictor):
        guess = predictor.play(trace).reshape(200, 240)
        return int((guess[100:, 238] != 0).sum())

    assert exits(TAGE()) > 90
    assert exits(TAGESCL()) < 10


def test_tage_cannot_see_through_noise_that_a_long_perceptron_sees_through():
    planted = majority_after_noise(3000, seed=1)

    def error(name):
        rows = simulate(planted.trace, PREDICTORS[name], 0.5).by_branch()
        return 1 - next(row.accuracy for row in rows if row.pc == planted.pc)

    assert error("tage-large") > 0.4
    assert error("perceptron") > 0.4
    assert error("perceptron-128") < 0.3


def test_storage_is_counted():
    assert Bimodal(10).bits == 2048
    assert Gshare(13, 13).bits == 2 * 8192 + 13
    assert Tournament().bits == 1024 * 10 + 1024 * 3 + 4096 * 4 + 12
    assert Perceptron(512, 32).bits == 512 * 33 * 8 + 32
    assert TAGE(8, 10).bits == 2 * 8192 + 8 * 1024 * 15 + 300 + 47
    assert TAGE(0).bits == Bimodal(13).bits
    assert TAGESCL().bits > TAGE().bits


@given(count=st.integers(1, 16), least=st.integers(1, 40), more=st.integers(0, 600))
def test_history_lengths_rise_from_least_to_most(count, least, more):
    most = least + count - 1 + more
    lengths = geometric(count, least, most)
    assert len(lengths) == count
    assert lengths[-1] == most
    assert lengths[0] == (least if count > 1 else most)
    assert all(a < b for a, b in pairwise(lengths))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("tages"), "did you mean 'tage'"),
        (lambda: build("tage", table=3), "did you mean 'tables'"),
        (lambda: build("gshare", log_size=30), "log_size must be a whole number in 1..24, got 30"),
        (lambda: build("gshare", log_size=4), "history=13 is longer"),
        (lambda: build("tage", tables=17), "tables must be a whole number in 0..16"),
        (lambda: build("tage", max_history=6), "8 rising history lengths from 5 to 6"),
        (lambda: build("tage", tag_bits=1), "tag_bits"),
        (lambda: build("tage-sc-l", corrector_local=(5, 3)), "corrector_local must rise"),
        (lambda: build("tage-sc-l", corrector_global=()), "1 to 8 lengths"),
        (lambda: build("perceptron", entries=0), "entries"),
        (lambda: TAGE().play(program(0, 10), np.zeros(3, np.uint8)), "one entry per branch"),
    ],
)
def test_a_bad_setting_is_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_the_kit_traces_would_be_read_as_text(tmp_path):
    (tmp_path / "t.bz2").write_bytes(bz2.compress(b"0x40 1\n0x44 0\n"))
    assert read(tmp_path / "t.bz2").taken.tolist() == [1, 0]
