"""docs/cli.md: the commands it shows exist, its settings are valid."""

import re
import shlex
from pathlib import Path

import yaml

from gossamer.cli.app import COMMANDS, GROUPS
from gossamer.training.config import Config

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_settings_are_valid():
    config = Config(**yaml.safe_load(re.search(r"```yaml\n(.*?)```", DOCS, re.S)[1]))
    assert config.recipe.options["sparsity"] == 0.95


def test_every_command_is_described_and_every_option_exists(gossamer):
    assert {name for name in (*COMMANDS, *GROUPS) if f"gossamer {name}" not in DOCS} == set()
    lines = [line for line in DOCS.splitlines() if line.startswith("gossamer ")]
    assert len(lines) >= 5
    for line in lines:
        _, command, *words = shlex.split(line)
        known = gossamer(command, "--help").out
        assert [word for word in words if word.startswith("--") and word not in known] == []
