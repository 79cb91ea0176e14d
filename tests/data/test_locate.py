"""`find` searches the chosen folder, then $GOSSAMER_DATA, then ../shared/data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.data import find, roots, use_folder
from gossamer.errors import DataError


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    use_folder(None)


def _data_set(root: Path, name: str = "toy-set") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"1")
    return folder


def test_environment_variable_names_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").mkdir()
    folder = _data_set(tmp_path / "second")
    monkeypatch.setenv("GOSSAMER_DATA", os.pathsep.join(map(str, [tmp_path / "first", tmp_path / "second"])))
    assert find("toy-set", "a.bin") == folder


def test_chosen_folder_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _data_set(tmp_path / "environment")
    chosen = _data_set(tmp_path / "chosen")
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path / "environment"))
    use_folder(tmp_path / "chosen")
    assert find("toy-set") == chosen
    use_folder(None)
    assert find("toy-set") == tmp_path / "environment" / "toy-set"


def test_shared_folder_beside_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _data_set(tmp_path / "shared" / "data")
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.delenv("GOSSAMER_DATA", raising=False)
    assert find("toy-set", "a.bin") == folder
    assert roots()[0] == tmp_path / "shared" / "data"


def test_missing_names_what_was_searched_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _data_set(tmp_path)
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        find("toy-set", "a.bin", "b.bin")
    message = str(caught.value)
    assert "'toy-set' with a.bin, b.bin" in message
    assert str(tmp_path / "toy-set") in message
    assert "$GOSSAMER_DATA" in message


def test_a_chosen_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        use_folder(tmp_path / "nowhere")
