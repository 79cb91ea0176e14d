"""The search for sparse branches, the side table, and the hybrid."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.domains.branch_prediction import (
    TAGE,
    Bimodal,
    Hybrid,
    Layout,
    Search,
    SideTable,
    Trace,
    Window,
    encode,
    find_sparse,
    play_float,
    simulate,
)
from gossamer.domains.branch_prediction.features import matrix, occurrences
from gossamer.domains.branch_prediction.packing import BitReader, BitWriter
from gossamer.domains.branch_prediction.reference.side import overlay
from gossamer.domains.branch_prediction.side import Entry
from gossamer.domains.branch_prediction.streams import coin, majority_after_noise, vote_after_noise
from gossamer.errors import CheckpointError, ConfigError

SMALL = Layout(Window(20, 6), tag_bits=8, bias_bits=5, weight_bits=4, max_terms=5)


@st.composite
def tables(draw):
    tags = draw(st.lists(st.integers(0, 255), unique=True, max_size=6))
    entries = []
    for tag in tags:
        places = draw(st.lists(st.integers(0, SMALL.window.size - 1), unique=True, max_size=SMALL.max_terms))
        weights = [draw(st.integers(-7, 7)) for _ in places]
        entries.append(Entry(tag, draw(st.integers(-15, 15)), tuple(places), tuple(weights)))
    return SideTable(SMALL, tuple(entries))


@pytest.fixture(scope="module")
def found():
    stream = majority_after_noise(4000, seed=3)
    return stream, find_sparse(stream.trace, TAGE(), branches=[stream.pc])


def test_the_positions_are_found(found):
    stream, report = found
    (finding,) = report.sparse
    assert tuple(k + 1 for k in finding.model.support) == stream.positions
    assert finding.accuracy > 0.9 > 0.6 > finding.baseline
    terms = report.terms(finding)
    assert sorted(word for word, _, _ in terms) == [f"{p} branches ago" for p in stream.positions]
    assert all("100%" in who for _, _, who in terms)


def test_the_hybrid_spares_the_misses(found):
    stream, report = found
    side = encode(report, 2048).side
    plain = simulate(stream.trace, TAGE(), 0.5)
    hybrid = simulate(stream.trace, Hybrid(TAGE(), side), 0.5)

    def misses(result):
        return next(row.misses for row in result.by_branch() if row.pc == stream.pc)

    assert misses(hybrid) < 0.2 * misses(plain)
    assert misses(play_float(report, plain)) < 0.2 * misses(plain)
    assert side.bits <= 8 * 2048
    assert hybrid.bits == TAGE().bits + side.bits


def test_forward_selection_finds_them_too():
    stream = majority_after_noise(3000, seed=4)
    report = find_sparse(stream.trace, TAGE(), Search(method="greedy"), branches=[stream.pc])
    assert tuple(k + 1 for k in report.findings[0].model.support) == stream.positions


def test_the_worst_branches_are_tried_and_coins_are_left_alone():
    report = find_sparse(coin(40_000, branches=6), Bimodal(), Search(candidates=4))
    assert len(report.findings) == 4
    assert not report.sparse
    assert all("gain" in finding.reason for finding in report.findings)


def test_a_branch_of_one_outcome_is_skipped_and_said():
    stream = majority_after_noise(1500)
    taken = np.where(stream.trace.pc == stream.pc, 1, stream.trace.taken)
    report = find_sparse(Trace(stream.trace.pc, taken), TAGE(), branches=[stream.pc])
    assert report.findings[0].reason == "only one outcome in the training part"
    assert report.terms(report.findings[0]) == []


def test_nothing_behind_the_split_is_looked_at():
    stream = majority_after_noise(2000, seed=5)
    other = stream.trace.taken.copy()
    other[stream.trace.cut(0.5) :] ^= 1
    one, two = (
        find_sparse(Trace(stream.trace.pc, taken), TAGE(), branches=[stream.pc]).findings[0].model
        for taken in (stream.trace.taken, other)
    )
    assert torch.equal(one.weights, two.weights)


@given(table=tables(), seed=st.integers(0, 50))
def test_the_native_table_equals_the_reference(table, seed):
    rng = np.random.default_rng(seed)
    trace = Trace(rng.integers(0, 12, 300).astype(np.uint64), rng.integers(0, 2, 300).astype(np.uint8))
    base = rng.integers(0, 2, 300).astype(np.uint8)
    np.testing.assert_array_equal(table.overlay(trace, base), overlay(table, trace, table.hits(trace), base))


@given(seed=st.integers(0, 20), positions=st.lists(st.integers(0, 25), unique=True, min_size=1, max_size=5))
def test_an_entry_predicts_the_sign_of_its_dot_product(seed, positions):
    rng = np.random.default_rng(seed)
    trace = Trace(rng.integers(0, 3, 200).astype(np.uint64), rng.integers(0, 2, 200).astype(np.uint8))
    weights, bias = rng.integers(-7, 8, len(positions)), int(rng.integers(-15, 16))
    table = SideTable(SMALL, (Entry(1, bias, tuple(positions), tuple(weights.tolist())),))
    at = occurrences(trace, 1)
    sums = matrix(trace, at, slice(None), SMALL.window)[:, positions].astype(int) @ weights + bias
    base = 1 - trace.taken  # always wrong, so that the table never loses its trust
    rest = np.setdiff1d(np.arange(200), at)
    guess = table.overlay(trace, base)
    np.testing.assert_array_equal(guess[at], sums >= 0)
    np.testing.assert_array_equal(guess[rest], base[rest])


def test_trust_is_lost_and_won_back():
    trace = Trace(np.full(40, 1, np.uint64), np.array([1] * 20 + [0] * 20, np.uint8))
    table = SideTable(SMALL, (Entry(1, 5, (), ()),))  # always taken
    never = np.zeros(40, np.uint8)
    # trust rises to 7 of 7; four misses bring it below 4
    assert table.overlay(trace, never).tolist() == [1] * 20 + [1] * 4 + [0] * 16
    # one miss from the middle; then it falls to 0 and takes four hits to come back
    back = table.overlay(Trace(trace.pc, 1 - trace.taken), never)
    assert back.tolist() == [1] + [0] * 19 + [0] * 4 + [1] * 16


@given(table=tables())
def test_a_table_decodes_to_itself(table):
    data = table.to_bytes()
    assert SideTable.from_bytes(table.layout, data, len(table.entries)) == table
    stored = sum(SMALL.entry_bits(e.positions) - SMALL.useful_bits for e in table.entries)
    own = sum(6 for e in table.entries if any(p >= 20 for p in e.positions))
    assert len(data) == -(-(stored - own) // 8)


@given(values=st.lists(st.tuples(st.integers(2, 20), st.integers(-(2**30), 2**30))))
def test_numbers_of_few_bits(values):
    fields = [(bits, number % (1 << bits) - (1 << (bits - 1))) for bits, number in values]
    writer = BitWriter()
    for bits, number in fields:
        writer.put_signed(number, bits)
    reader = BitReader(writer.bytes())
    assert [reader.take_signed(bits) for bits, _ in fields] == [number for _, number in fields]


def test_storage_by_hand():
    layout = Layout(max_terms=8)
    assert layout.position_bits == 10
    assert layout.entry_bits((1, 2, 3)) == 12 + 6 + 3 + 4 + 3 * 15
    assert layout.entry_bits((1, 2, 512)) == 12 + 6 + 3 + 4 + 3 * 15 + 32
    assert SideTable(layout).bits == 0
    assert SideTable(layout, (Entry(0, 0, (1,), (1,)),)).bits == 512 + 12 + 6 + 3 + 4 + 15


def test_an_empty_table_is_the_base():
    stream = vote_after_noise((3, 1, 1), 300)
    for block in (False, True):
        hybrid = Hybrid(TAGE(), SideTable(Layout()), block)
        np.testing.assert_array_equal(hybrid.play(stream.trace), TAGE().play(stream.trace))
        assert hybrid.bits == TAGE().bits


def test_blocked_branches_allocate_nothing(found):
    stream, report = found
    side = encode(report, 2048).side
    quiet = (side.hits(stream.trace) >= 0).astype(np.uint8)
    assert quiet[stream.trace.pc == stream.pc].all()
    base = TAGE().play(stream.trace, quiet)
    np.testing.assert_array_equal(Hybrid(TAGE(), side, True).play(stream.trace), side.overlay(stream.trace, base))


@pytest.mark.parametrize("budget", [75, 80, 100, 512])
def test_the_budget_is_kept(found, budget):
    table = encode(found[1], budget)
    assert table.side.bits <= 8 * budget
    assert len(table.side.entries) + len(table.dropped) == 1


def test_a_saved_table_is_loaded(found, tmp_path):
    path = tmp_path / "side.json"
    side = encode(found[1], 2048).side
    side.save(path)
    assert SideTable.load(path) == side
    record = json.loads(path.read_text())
    assert len(record["entries"][0]["terms"]) == 3
    path.write_text(json.dumps({**record, "data": record["data"][:10]}))
    with pytest.raises(CheckpointError, match="damaged"):
        SideTable.load(path)
    path.write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2"):
        SideTable.load(path)
    with pytest.raises(CheckpointError, match="no side table"):
        SideTable.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, r: encode(r, 66), "66 bytes cannot hold one entry.*at least 70 bytes"),
        (lambda s, r: encode(r, 2048, SMALL), "layout is for"),
        (lambda s, r: Search(max_nonzero=0), "max_nonzero must be at least 1"),
        (lambda s, r: Search(split=1.0), "split must lie strictly between"),
        (lambda s, r: Search(method="l2"), "unknown method 'l2'"),
        (lambda s, r: find_sparse(s.trace, TAGE(), branches=[1]), "branch 0x1 is not executed in the profile"),
        (lambda s, r: find_sparse(s.trace.first(900), TAGE()), "history=512 is longer than the trace of 450"),
        (lambda s, r: SideTable(SMALL, (Entry(1, 0, (), ()), Entry(1, 0, (), ()))), "same tag"),
        (lambda s, r: SideTable(SMALL, (Entry(1, 99, (), ()),)), "does not fit the layout"),
        (lambda s, r: Layout(weight_bits=1), "weight_bits must lie in 2..10"),
    ],
)
def test_bad_input_is_named(found, call, message):
    with pytest.raises(ConfigError, match=message):
        call(*found)
