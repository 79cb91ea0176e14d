"""The package as a whole: lazy verbs, version, typing marker, no work at import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module, resources
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(gossamer._VERBS))
def test_public_verbs_resolve_to_their_module(name):
    assert getattr(gossamer, name) is getattr(import_module(gossamer._VERBS[name]), name)


@pytest.mark.parametrize("name", gossamer._MODULES)
def test_public_modules_resolve(name):
    assert getattr(gossamer, name) is import_module(f"gossamer.{name}")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Sparsifer'"):
        _ = gossamer.Sparsifer


def test_dir_lists_the_verbs():
    assert {"Sparsifier", "recipes", "__version__"} <= set(dir(gossamer))


def test_version_agrees_with_changelog_and_citation():
    assert re.fullmatch(r"\d+\.\d+\.\d+", gossamer.__version__)
    assert f"## {gossamer.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {gossamer.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_package_is_marked_as_typed():
    assert resources.files("gossamer").joinpath("py.typed").is_file()


def test_import_is_light():
    code = "import sys, gossamer; print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_constraints_pin_every_core_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[<>=\[]", entry)[0] for entry in wanted} - {"gossamer"}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in names} <= normal
