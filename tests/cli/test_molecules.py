"""`gossamer molecules` from making data to a prediction, as a user would."""

import json
import sqlite3
import subprocess
import sys
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside e3nn
    pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
    pytest.importorskip("pyscf", reason="needs the extra 'molecules'")


def run(*arguments):
    from gossamer.cli.app import app

    done = CliRunner().invoke(app, ["molecules", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_from_data_to_a_prediction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("make", "water", "--count", "4", "-o", "water.npz")["molecules"] == 4
    small = ("--steps", "12", "--batch", "2", "--lmax", "2", "--channels", "4")
    trained = run("train", "water.npz", *small, "-o", "net.safetensors")
    assert trained["network"]["h_mae"] > 0
    assert trained["parameters"]["frozen"] < trained["parameters"]["gated"]
    measured = run("evaluate", "water.npz", "-m", "net.safetensors", "--picture", "water.png", "--fields", "1")
    assert measured["network"]["iterations"] > 0
    assert (tmp_path / "water.png").read_bytes()[1:4] == b"PNG"
    (tmp_path / "w.xyz").write_text("3\nwater\nO 0 0 0\nH 0.757 0.587 0\nH -0.757 0.587 0\n")
    assert len(run("predict", "w.xyz", "-m", "net.safetensors", "-o", "guess.npz")["energies"]) == 7
    with np.load(tmp_path / "guess.npz") as held:
        assert np.trace(held["density"] @ held["overlap"]) == pytest.approx(10)  # the electrons


def test_what_cannot_be_labelled_is_left_out_and_named(tmp_path, monkeypatch):
    from gossamer.cli.app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.XYZ").write_text(
        "2\n\nO 0 0 0\nH 0 0 0.97\n1\n\nZn 0 0 0\n2\n\nH 0 0 0\nH 0 0 0.1\n2\n\nH 0 0 0\nF 0 0 0.92\n"
    )
    done = CliRunner().invoke(app, ["molecules", "make", "m.XYZ", "-o", "m.npz", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["molecules"] == 1
    for reason in ("open shell", "unknown element 'Zn'", "0.100 angstrom apart"):
        assert reason in done.stderr
    done = CliRunner().invoke(app, ["molecules", "make", "water", "--count", "1", "--max-cycle", "1"])
    assert "did not converge in 1 iterations" in done.stderr
    assert "no molecule could be labelled" in str(done.exception)


def test_a_database_of_qh9s_form_is_trained_on_and_measured(tmp_path, monkeypatch):
    from gossamer.domains.molecules import geometries, label

    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("q.db") as base:
        base.execute("CREATE TABLE data (id INTEGER, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)")
        samples = [label(molecule, "def2-svp") for molecule in geometries("hydrogen-fluoride", 4)]
        for place, sample in enumerate(samples):
            numbers = sample.molecule.numbers.astype(np.int32).tobytes()
            row = (place, 2, numbers, sample.molecule.positions.tobytes(), sample.fock.tobytes())
            base.execute("INSERT INTO data VALUES (?, ?, ?, ?, ?)", row)
    base.close()
    run("train", "q.db", "--steps", "3", "--batch", "2", "--lmax", "4", "--channels", "2", "-o", "net.safetensors")
    found = run("evaluate", "q.db", "--limit", "2", "-m", "net.safetensors")
    assert found["network"]["h_mae"] > 0
    errors = [np.abs(sample.guess - sample.fock).mean() for sample in samples[:2]]
    assert found["minao"]["h_mae"] == pytest.approx(1e6 * np.mean(errors), rel=1e-6)


def test_an_interrupted_training_is_not_overlooked(tmp_path, monkeypatch):
    from gossamer.cli.app import app

    monkeypatch.chdir(tmp_path)
    run("make", "water", "--count", "4", "-o", "water.npz")
    (tmp_path / "net.state.json").write_text("{}")
    command = ["molecules", "train", "water.npz", "--steps", "2", "--lmax", "2", "-o", "net.safetensors"]
    for more, message in (([], "go on with --resume"), (["--resume"], "no Gossamer checkpoint")):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code != 0
        assert message in str(done.exception) + done.output


def test_bad_usage_is_one_line(tmp_path):
    command = [sys.executable, "-m", "gossamer.cli", "molecules", "make", "watr"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'water'" in done.stderr
    assert "Traceback" not in done.stderr
