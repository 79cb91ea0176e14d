"""`gossamer branches`: from a C program to a side table."""

import json
import shutil

import numpy as np
import pytest

from gossamer.domains.branch_prediction import Trace, write
from gossamer.domains.branch_prediction.streams import majority_after_noise

PROGRAM = """
#include <stdlib.h>
int main(int argc, char **argv) {
  volatile int sink = 0;
  for (int i = 0; i < atoi(argv[1]); ++i) if (i % 3) sink += i; else sink ^= i;
  return 0;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A planted stream whose hard branch is by far the most frequent of the hard ones."""
    folder = tmp_path_factory.mktemp("branches")
    trace = majority_after_noise(3000, gap=20).trace
    write(Trace(trace.pc, trace.taken, 5 * len(trace)), folder / "planted.npz")
    write(trace.first(3000), folder / "short.bz2")
    (folder / "bad.txt").write_text("0x40 1\n0x44 2\n")
    return folder


def test_predictors_are_compared(gossamer, folder):
    done = gossamer("branches", "run", "planted.npz", "short.bz2", "-p", "gshare", "-p", "tage", "--set",
                    "tage.tables=4", "--top", 2, "--json", cwd=folder)  # fmt: skip
    assert done.code == 0, done.err
    assert [(row["trace"], row["predictor"]) for row in done.json] == [
        (trace, name) for trace in ("planted.npz", "short.bz2") for name in ("gshare", "tage")
    ]
    first, *_, last = done.json
    assert first["MPKI"] == pytest.approx(first["per 1000 branches"] / 5)
    assert last["MPKI"] is None
    assert len(first["worst"]) == 2
    table = gossamer("branches", "run", "short.bz2", "-p", "static", cwd=folder)
    assert "static" in table.out


def test_sparse_models_spare_misses(gossamer, folder):
    pytest.importorskip("matplotlib", reason="the page has a picture")
    arguments = ("sparse", "planted.npz", "--candidates", 40, "-o", "side.json", "--report", "page.html")
    done = gossamer("branches", *arguments, "--json", cwd=folder)
    assert done.code == 0, done.err
    plain, hybrid, _ = done.json["results"]
    assert hybrid["misses"] < plain["misses"]
    (model,) = [branch for branch in done.json["branches"] if branch["sparse"]]
    assert sorted(t["position"] for t in model["terms"]) == ["21 branches ago", "22 branches ago", "23 branches ago"]
    page = (folder / "page.html").read_text()
    assert model["pc"] in page
    assert "data:image/png;base64," in page
    again = gossamer("branches", "run", "planted.npz", "-p", "tage", "--side", "side.json", "--split", 0.5, "--json",
                     cwd=folder)  # fmt: skip
    assert [row["misses"] for row in again.json] == [plain["misses"], hybrid["misses"]]


def test_a_sweep_keeps_its_budgets(gossamer, folder):
    pytest.importorskip("matplotlib", reason="the sweep draws a picture")
    done = gossamer("branches", "sweep", "short.bz2", "-p", "gshare", "-p", "tage", "-p", "tage-sc-l", "--budgets",
                    "2,8", "-o", "sweep.png", "--json", cwd=folder)  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.json) == 6
    assert all(row["budget"] / 2 < row["bits"] <= row["budget"] + 64 for row in done.json)
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_a_program_is_recorded(gossamer, folder):
    (folder / "program.c").write_text(PROGRAM)
    done = gossamer("branches", "record", "program.c", "-a", 500, "-o", "own.npz", "--json", cwd=folder)
    assert done.code == 0, done.err
    with np.load(folder / "own.npz") as arrays:
        assert len(arrays["pc"]) == done.json["branches"] >= 1000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "bad.txt"), 3, "bad.txt, line 2: outcome must be 0 or 1"),
        (("run", "none.bz2"), 3, "cannot read trace"),
        (("run", "short.bz2", "-p", "tages"), 2, "did you mean 'tage'"),
        (("run", "short.bz2", "-p", "tage", "--set", "gshare.history=3"), 2, "'gshare' is not among"),
        (("run", "short.bz2", "-p", "tage", "--set", "tables=3"), 2, "needs PREDICTOR.SETTING=VALUE"),
        (("run", "short.bz2", "-p", "tage", "--set", "tage.tables=x"), 2, "tables must be a whole number"),
        (("run", "short.bz2", "--split", "1"), 2, "split must lie strictly between 0 and 1"),
        (("run", "short.bz2", "--kind", "cbp9"), 2, "unknown kind of trace"),
        (("run", "short.bz2", "--side", "bad.txt"), 3, "no side table"),
        (("sparse", "planted.npz", "--budget", "20", "--candidates", "1"), 2, "20.0 bytes cannot hold one entry"),
        (("sparse", "short.bz2", "--history", "2000"), 2, "longer than the trace"),
        (("sparse", "short.bz2", "--max-nonzero", "0"), 2, "max_nonzero must be at least 1"),
        (("sweep", "short.bz2", "--budgets", "0.001"), 2, "too few for"),
        (("sweep", "short.bz2", "--budgets", "a"), 2, "needs sizes in KB"),
        (("sweep", "short.bz2", "-p", "tage+sprse"), 2, "did you mean 'tage+sparse'"),
        (("sweep", "short.bz2", "-p", "tage+sparse", "--budgets", "0.01"), 2, "too few for tage"),
        (("sweep", "short.bz2", "-o", "sweep.jpg"), 2, "the picture is a .png"),
        (("record", "none.c"), 3, "no source file"),
    ],
)
def test_bad_input_is_one_message(gossamer, folder, arguments, code, message):
    done = gossamer("branches", *arguments, cwd=folder)
    assert done.code == code, done.err
    assert message in done.err
    assert not done.out


def test_the_record_of_a_table_is_json(folder, gossamer):
    gossamer("branches", "sparse", "planted.npz", "-o", "own.json", "--candidates", 1, cwd=folder)
    assert json.loads((folder / "own.json").read_text())["format"] == 1
