"""The application as a whole: help, start-up, pipes, names, and what the small commands print."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from command_lines import ENVIRONMENT

from gossamer.cli.app import COMMANDS, GROUPS
from gossamer.recipes import RECIPES
from gossamer.sparsify.recipe import Recipe

COMMAND = [sys.executable, "-m", "gossamer.cli"]


def test_help_is_quick_and_needs_no_torch():
    seconds = []
    for _ in range(3):
        started = time.process_time(), os.times().children_user + os.times().children_system
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
        seconds.append(os.times().children_user + os.times().children_system - started[1])
    assert min(seconds) < 1
    assert all(name in done.stdout for name in (*COMMANDS, *GROUPS))
    loaded = "import sys, gossamer.cli.app; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], env=ENVIRONMENT).returncode == 0


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPS])
def test_every_command_explains_itself(gossamer, name):
    done = gossamer(name, "--help")
    assert done.code == 0
    assert "--help" in done.out


def test_a_wrong_command_or_option_names_the_nearest(gossamer):
    assert "Did you mean 'train'" in gossamer("trian").err
    wrong = gossamer("compare", ".", "--fromat", "md")
    assert (wrong.code, "--format" in wrong.err) == (2, True)


@pytest.mark.parametrize("words", ["recipes --json", "--help", "config schema"])
def test_a_reader_that_goes_away_is_no_error(words):
    pipe = f"{sys.executable} -m gossamer.cli {words} | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.endswith("0\n")
    assert done.stderr == ""


def test_recipes_are_listed_and_shown_as_they_are(gossamer):
    listed = gossamer("recipes", "--json").json
    assert [row["name"] for row in listed] == list(RECIPES)
    assert all(row["summary"] for row in listed)
    assert "synflow" in gossamer("recipes").out
    shown = gossamer("recipes", "show", "granet", "--sparsity", 0.95, "--set", "growth=random", "--set", "every=7")
    assert "interval: 7" in shown.out
    assert Recipe.from_yaml(shown.out).to_yaml() == shown.out
    assert "did you mean 'growth'" in gossamer("recipes", "show", "granet", "--set", "grwth=random").err
    assert (
        yaml.safe_load(shown.out)
        == gossamer(
            "recipes", "show", "granet", "--sparsity", 0.95, "--set", "growth=random", "--set", "every=7", "--json"
        ).json
    )


def test_config_schema_and_show(gossamer, tmp_path):
    schema = gossamer("config", "schema").json
    assert set(schema["properties"]) == {"task", "data", "model", "recipe", "train"}
    (tmp_path / "c.yaml").write_text("train: {steps: 7}")
    assert yaml.safe_load(gossamer("config", "show", tmp_path / "c.yaml").out)["train"]["steps"] == 7
    (tmp_path / "c.yaml").write_text("train: [")
    assert gossamer("config", "show", tmp_path / "c.yaml").code == 2


def test_doctor_tells_what_is_here(gossamer, tmp_path):
    found = gossamer("doctor", "--json", cwd=tmp_path).json
    assert found["versions"]["torch"]
    assert found["native"]["level"] in found["native"]["levels"]
    assert found["writable"] == {"here": True, "temporary files": True}
    assert "jinja2" in found["extras"]["report"]
    assert "native kernels" in gossamer("doctor").out
    assert list(tmp_path.iterdir()) == []


def test_json_text_of_numbers_that_json_lacks(capsys):
    from gossamer.cli.console import print_json

    print_json({"a": float("nan"), "b": [float("inf")]})
    assert json.loads(capsys.readouterr().out) == {"a": "nan", "b": ["inf"]}
