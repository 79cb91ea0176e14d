"""Scores in processes of their own: as in this one, once, within the budget."""

import pytest
from score_jobs import total

from gossamer.architectures import Evaluator, OneOf, SearchSpace
from gossamer.architectures.parallel import evaluate_in_processes
from gossamer.errors import ConfigError, GossamerError

SPACE = SearchSpace((OneOf("a", ("1", "2", "3")), OneOf("b", ("4", "5"))))
pytestmark = pytest.mark.timeout(300)


def never(architecture):
    raise AssertionError("asked again")


def test_processes_give_what_this_one_would(tmp_path):
    evaluator = Evaluator(SPACE, never, 4, goal="max")
    everything = list(SPACE)
    evaluate_in_processes(evaluator, everything, total, tmp_path, options={"factor": 2}, chunk=3)
    wanted = [2 * int(d["a"] + d["b"]) for d in map(SPACE.describe, everything[:4])]
    assert [e.value for e in evaluator.history] == wanted
    assert evaluator.remaining == 0
    assert len(list(tmp_path.glob("*/ran"))) == 2
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/ran"))]
    again = Evaluator(SPACE, never, 4, goal="max")
    evaluate_in_processes(again, everything, total, tmp_path, options={"factor": 2}, chunk=3)
    assert again.history == evaluator.history
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/ran"))] == before


def test_a_failing_process_is_named(tmp_path):
    evaluator = Evaluator(SPACE, never, 4, goal="max")
    with pytest.raises(GossamerError, match="no score today"):
        evaluate_in_processes(evaluator, list(SPACE)[:1], total, tmp_path, options={"fail": True})
    with pytest.raises(ConfigError, match="chunk"):
        evaluate_in_processes(evaluator, list(SPACE), total, tmp_path, chunk=0)
