"""Sweeps: skipping, failing, dying and stopping jobs, each in a real process."""

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gossamer.errors import ConfigError
from gossamer.runs.sweep import Job, sweep

HERE = Path(__file__).parent
SOURCE = str(HERE.parents[1] / "src")


@pytest.fixture
def jobs_module(monkeypatch):
    """The jobs under a name that the fresh processes can import."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SOURCE, str(HERE)]))
    spec = importlib.util.find_spec("sweep_jobs")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sweep_jobs", module)
    spec.loader.exec_module(module)
    return module


def test_failures_are_named_the_rest_is_kept_and_finished_jobs_are_skipped(tmp_path, jobs_module):
    jobs = [Job(f"x{x}", {"x": x}) for x in (2, 3, 4, 5, 6)]
    ended = []
    done = sweep(jobs, jobs_module.square, tmp_path, ("a", "b"), lambda name, reason: ended.append(name))
    assert done.results == {"x2": {"square": 4}, "x6": {"square": 36}}
    assert done.failures == {
        "x3": "the loss is NaN at step 7",
        "x4": "its process ended with exit code -9",
        "x5": "KeyError: 'missing'",
    }
    assert sorted(ended) == ["x2", "x3", "x4", "x5", "x6"]
    assert "Traceback" in (tmp_path / "x5" / "error.txt").read_text()
    assert {path.read_text().strip() for path in tmp_path.glob("*/calls.txt")} == {"a", "b"}

    again = sweep(jobs[:2], jobs_module.square, tmp_path)
    assert again.results == {"x2": {"square": 4}}
    assert list(again.failures) == ["x3"]
    assert len((tmp_path / "x2" / "calls.txt").read_text().split()) == 1
    assert len((tmp_path / "x3" / "calls.txt").read_text().split()) == 2

    with pytest.raises(ConfigError, match="changed argument: x was 2, is now 7"):
        sweep([Job("x2", {"x": 7})], jobs_module.square, tmp_path)
    (tmp_path / "x2" / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged; remove it"):
        sweep(jobs[:1], jobs_module.square, tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, jobs_module, name):
    with pytest.raises(ConfigError, match="a job's name is a folder's name"):
        sweep([Job(name, {})], jobs_module.square, tmp_path)
    with pytest.raises(ConfigError, match="two jobs of the sweep are named 'a'"):
        sweep([Job("a", {}), Job("a", {})], jobs_module.square, tmp_path)


MAIN = """
    import sys, sweep_jobs
    from gossamer.runs.sweep import Job, sweep
    if __name__ == "__main__":
        sweep([Job("a", {}), Job("b", {})], sweep_jobs.wait_for_signal, sys.argv[1])
"""


def test_ctrl_c_lets_the_running_job_save(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(textwrap.dedent(MAIN))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([SOURCE, str(HERE)])}
    command = [sys.executable, str(script), str(tmp_path / "out")]
    with subprocess.Popen(command, env=environment, start_new_session=True) as child:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "a" / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)  # what a terminal does
        assert child.wait(30) == 130
    assert (tmp_path / "out" / "a" / "saved").exists()
    assert not (tmp_path / "out" / "b").exists()
