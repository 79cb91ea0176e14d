"""The record survives a round trip, refuses damage and knows when it is stale."""

import json

import pytest

from gossamer.claims.store import is_stale, read_result, results_folder, write_result
from gossamer.errors import CheckpointError, DataError

MODULE = "gossamer.maths.pareto"
OUTCOME = {"slug": "granet", "holds": True, "seconds": 1.5, "claims": [{"id": "a", "measured": 0.6}]}


def test_round_trip_and_staleness(tmp_path):
    path = write_result(OUTCOME, MODULE, tmp_path)
    record = read_result("granet", tmp_path)
    assert path == tmp_path / "granet.json"
    assert OUTCOME.items() <= record.items()
    assert not is_stale(record, MODULE)
    assert is_stale(record, "gossamer.maths.proximal")
    assert record["versions"].keys() == {"gossamer", "python", "torch"}
    assert list(tmp_path.iterdir()) == [path]


def test_never_run_is_none(tmp_path):
    assert read_result("granet", tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "cannot read"),
        (lambda text: text.replace('"granet"', '"rigl"'), "no record of 'granet'"),
        (lambda text: json.dumps(json.loads(text) | {"format": 99}), "format 99"),
        (lambda text: "[]", "no record"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    path = write_result(OUTCOME, MODULE, tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_result("granet", tmp_path)


def test_an_unwritable_folder_is_an_error_and_keeps_the_old_file(tmp_path):
    path = write_result(OUTCOME, MODULE, tmp_path)
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_result(OUTCOME | {"seconds": float("nan")}, MODULE, tmp_path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="cannot write"):
        write_result(OUTCOME, MODULE, path)  # a file where a folder is needed


def test_results_lie_at_the_root_of_a_checkout():
    assert results_folder().name == "results"
