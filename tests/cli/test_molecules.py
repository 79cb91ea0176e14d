"""`gossamer molecules` from making data to a prediction, as a user would."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside e3nn
    pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
    pytest.importorskip("pyscf", reason="needs the extra 'molecules'")


def run(folder, *arguments):
    command = [sys.executable, "-m", "gossamer.cli", "molecules", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_from_data_to_a_prediction(tmp_path):
    made = run(tmp_path, "make", "water", "--count", "4", "-o", "water.npz", "--json")
    assert json.loads(made.stdout)["molecules"] == 4, made.stderr
    small = ("--steps", "12", "--batch", "2", "--lmax", "2", "--channels", "4")
    trained = json.loads(run(tmp_path, "train", "water.npz", *small, "-o", "net.safetensors", "--json").stdout)
    assert trained["network"]["h_mae"] > 0
    assert trained["parameters"]["frozen"] < trained["parameters"]["gated"]
    (tmp_path / "w.xyz").write_text("3\nwater\nO 0 0 0\nH 0.757 0.587 0\nH -0.757 0.587 0\n")
    predicted = run(tmp_path, "predict", "w.xyz", "-m", "net.safetensors", "-o", "guess.npz", "--json")
    assert len(json.loads(predicted.stdout)["energies"]) == 7
    with np.load(tmp_path / "guess.npz") as held:
        assert np.trace(held["density"] @ held["overlap"]) == pytest.approx(10)  # the electrons


def test_bad_usage_is_one_line(tmp_path):
    for arguments, code in ((("make", "watr"), 2), (("train", "absent.npz"), 3)):
        done = run(tmp_path, *arguments)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
