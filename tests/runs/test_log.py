"""The log: strict JSON, torn lines, rewinding."""

import importlib.util
import json

import pytest
import torch

from gossamer.errors import CheckpointError, ConfigError, DataError, MissingExtra
from gossamer.runs.log import JsonLog, check_trackers, read_log


def test_records_come_back_in_order_and_are_strict_json(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    with JsonLog(path) as log:
        log.write({"step": 1, "loss": torch.tensor(0.5), "names": ("a", "b")})
        log.write({"step": 2, "loss": float("nan"), "inner": {"x": float("-inf")}})
    assert read_log(path) == [
        {"step": 1, "loss": 0.5, "names": ["a", "b"]},
        {"step": 2, "loss": "nan", "inner": {"x": "-inf"}},
    ]

    def refuse(name):
        raise AssertionError(name)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_each_record_is_on_disk_at_once(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    for step in range(3):
        log.write({"step": step})
        assert [record["step"] for record in read_log(log.path)] == list(range(step + 1))
    log.close()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_ignored_and_later_cut_off(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    with JsonLog(path) as log:
        log.write({"step": 1})
        log.write({"step": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_log(path) == [{"step": 1}]
    with JsonLog(path) as log:
        log.write({"step": 3})
    assert read_log(path) == [{"step": 1}, {"step": 3}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is no JSON"):
        read_log(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 is no JSON object"):
        read_log(path)


def test_rewinding_forgets_later_steps(tmp_path):
    with JsonLog(tmp_path / "log.jsonl") as log:
        for step in range(5):
            log.write({"step": step})
        log.rewind(2)
        log.write({"step": 3, "again": True})
    assert read_log(log.path) == [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the log"):
        JsonLog(tmp_path / "file" / "log.jsonl")


def test_an_unknown_tracker_has_a_suggestion():
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    assert check_trackers([]) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_missing_tracker_names_its_extra():
    with pytest.raises(MissingExtra, match=r"'tensorboard'.*gossamer\[trackers\]"):
        check_trackers(["tensorboard"])
