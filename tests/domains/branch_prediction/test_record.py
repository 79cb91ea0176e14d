"""The recorder: a program of which every branch is known."""

import shutil

import numpy as np
import pytest

from gossamer.domains.branch_prediction.record import branches, record
from gossamer.errors import ConfigError, DataError

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
LOOP = """
#include <stdlib.h>
int main(int argc, char **argv) {
  int n = atoi(argv[1]), odd = 0;
  volatile int sink = 0;
  for (int i = 0; i < n; ++i) { if (i % 3 == 0) { ++odd; sink += odd; } else sink -= i; sink ^= i; }
  return 0;
}
"""


def test_a_block_with_two_successors_is_a_branch():
    # 10 goes on to 20 (falls through) or jumps to 40; both come back to 10
    trace = branches(np.array([10, 20, 10, 40, 10, 20, 10, 40], np.uint64))
    assert trace.pc.tolist() == [10] * 4
    assert trace.taken.tolist() == [0, 1, 0, 1]


def test_a_backward_branch_is_taken_backwards():
    trace = branches(np.array([10, 20, 10, 20, 10, 20, 30, 10], np.uint64))
    assert trace.pc.tolist() == [20] * 3
    assert trace.taken.tolist() == [1, 1, 0]


def test_one_or_three_successors_are_no_conditional_branch():
    with pytest.raises(DataError, match="none of 1 blocks has exactly two successors"):
        branches(np.array([5, 5, 5, 5], np.uint64))
    three = branches(np.array([1, 2, 1, 3, 1, 4, 1, 2, 5, 2, 1], np.uint64))
    assert set(three.pc.tolist()) == {2}


@needs_gcc
def test_the_branches_of_a_loop(tmp_path):
    (tmp_path / "loop.c").write_text(LOOP)
    trace, again = (record([tmp_path / "loop.c"], ["300"]) for _ in range(2))
    assert trace.pc.tolist() == again.pc.tolist()
    assert 300 <= trace.static_branches()[1].max() <= 301
    ways = [trace.taken[trace.pc == pc] for pc, n in zip(*trace.static_branches(), strict=True) if n == 300]
    third = np.arange(300) % 3 == 0
    assert any(np.array_equal(way, third) or np.array_equal(way, ~third) for way in ways)


@needs_gcc
def test_a_limit_and_a_time_limit_keep_what_was_recorded(tmp_path):
    (tmp_path / "loop.c").write_text(LOOP)
    assert len(record([tmp_path / "loop.c"], ["3000"], limit=100)) < 100
    (tmp_path / "forever.c").write_text(LOOP.replace("return 0;", "for (;;) if (sink++ % 5) sink += 2;"))
    assert len(record([tmp_path / "forever.c"], ["50"], limit=100_000, timeout=1.0)) > 50


@needs_gcc
def test_what_cannot_be_recorded(tmp_path):
    with pytest.raises(ConfigError, match="needs a source file"):
        record([])
    with pytest.raises(DataError, match="no source file"):
        record([tmp_path / "none.c"])
    (tmp_path / "bad.c").write_text("int main( {")
    with pytest.raises(DataError, match=r"gcc failed with 1:\n.*bad\.c"):
        record([tmp_path / "bad.c"])


def test_a_missing_compiler_is_named(tmp_path):
    with pytest.raises(DataError, match="no compiler 'nocc'"):
        record([tmp_path / "none.c"], compiler="nocc")
