"""Finished cells are read back; damaged or foreign ones are computed anew."""

import pytest

from gossamer.claims import cells

MODULE = "gossamer.maths.pareto"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path))
    return tmp_path


def counted(values):
    source = iter(values)
    return lambda: {"value": next(source), "pair": (1, 2)}


def test_computed_once_per_settings_and_code(monkeypatch):
    compute = counted([1.0, 2.0, 3.0])
    first = cells.cell(MODULE, {"seed": 0}, compute)
    assert first == {"value": 1.0, "pair": [1, 2]}  # as a later run will read it
    assert cells.cell(MODULE, {"seed": 0}, compute) == first
    assert cells.cell(MODULE, {"seed": 1}, compute)["value"] == 2.0
    monkeypatch.setattr(cells, "fingerprint", lambda module: "changed")
    assert cells.cell(MODULE, {"seed": 0}, compute)["value"] == 3.0


def test_a_damaged_cell_is_computed_anew(folder):
    compute = counted([1.0, 2.0])
    cells.cell(MODULE, {}, compute)
    (path,) = (folder / "cells").iterdir()
    path.write_text(path.read_text()[:20])
    assert cells.cell(MODULE, {}, compute)["value"] == 2.0


def test_nan_is_no_result():
    with pytest.raises(ValueError, match="JSON"):
        cells.cell(MODULE, {}, lambda: {"value": float("nan")})


def test_without_a_cache_it_still_computes(folder, monkeypatch, caplog):
    (folder / "file").write_text("")
    monkeypatch.setenv(cells.VARIABLE, str(folder / "file"))
    assert cells.cell(MODULE, {}, counted([1.0]))["value"] == 1.0
    assert "not cached" in caplog.text
