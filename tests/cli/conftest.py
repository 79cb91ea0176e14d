"""Command lines in processes of their own, and a trained run that many tests look at."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command_lines import ENVIRONMENT, SMALL


@dataclass
class Done:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def gossamer(tmp_path_factory):
    """`gossamer(*arguments, cwd=folder)` -> Done. No command may end in a traceback."""
    folder = tmp_path_factory.mktemp("streams")
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def run(*arguments, cwd=folder):
        out, err = folder / "out", folder / "err"
        request = {"argv": list(map(str, arguments)), "cwd": str(cwd), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        done = Done(int(server.stdout.readline()), out.read_text(), err.read_text())
        assert "Traceback" not in done.err, done.err
        return done

    yield run
    server.stdin.close()
    server.wait(10)
    server.stdout.close()


@pytest.fixture(scope="session")
def runs(gossamer, tmp_path_factory):
    """A folder with two short trainings: `dense` and `rigl` at 90 %."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe, options in (("dense", ()), ("rigl", ("--sparsity", 0.9, "--set", "recipe.options.every=10"))):
        done = gossamer("train", "-r", recipe, *options, *SMALL, "--steps", 40, "-o", folder / recipe)
        assert done.code == 0, done.err
    return folder
