"""`gossamer dynamics` from training to a film."""

import numpy as np
import pytest

pytest.importorskip("highspy", reason="extra dynamics")


def test_a_model_is_trained_run_and_exported(gossamer, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="extra dynamics")
    done = gossamer("dynamics", "train", "--relus", 4, "--hidden", 8, "--steps", 60, "-o", "m", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["relu"] == 4
    options = ("-m", "m", "--horizon", 2, "--steps", 2, "--film", "loop.gif", "--picture", "end.png", "--json")
    done = gossamer("dynamics", "run", "-p", "milp", "-p", "cem", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert set(done.json) == {"milp", "cem"}
    assert done.json["milp"]["start"] == pytest.approx(0.35)
    with image.open(tmp_path / "loop.gif") as film:
        assert film.n_frames == 3
    with image.open(tmp_path / "end.png") as picture:
        assert picture.size == (640, 320)
    done = gossamer("dynamics", "export", "plan.mps", "-m", "m", "--horizon", 2, "--json", cwd=tmp_path)
    assert done.json["binaries"] <= 8
    assert (tmp_path / "plan.mps").stat().st_size > 0
    assert gossamer("dynamics", "run", "-m", "m", "-p", "mpi", cwd=tmp_path).code == 2


def test_a_graph_model_is_trained_and_sorts(gossamer, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="extra dynamics")
    train = ("dynamics", "train", "-s", "pile", "--relus", 6, "--hidden", 6, "--steps", 20, "--samples", 200, "-o", "m")
    done = gossamer(*train, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["relu"] == 6
    for task in ("sort", "gather"):
        options = ("-p", "milp", "--limit", 1, "--steps", 1, "--film", "loop.gif", "--json")
        done = gossamer("dynamics", "run", "-m", "m", "-t", task, *options, cwd=tmp_path)
        assert done.code == 0, done.err
        assert 0 <= done.json["milp"]["arrived"] <= 4
        with image.open(tmp_path / "loop.gif") as film:
            assert film.n_frames == 2
    assert "needs a perceptron" in gossamer("dynamics", "run", "-m", "m", "-t", "push", cwd=tmp_path).err


def test_own_data_and_bad_data(gossamer, tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.savez(tmp_path / "own.npz", inputs=x, targets=x[:, :1])
    train = ("dynamics", "train", "--hidden", 6, "--steps", 20, "--relus", 2, "--json", "-o", "m", "--data")
    assert gossamer(*train, "own.npz", cwd=tmp_path).json["relu"] == 2
    np.savez(tmp_path / "bad.npz", inputs=x)
    assert gossamer(*train, "bad.npz", cwd=tmp_path).code == 3
    assert gossamer("dynamics", "run", "-m", "m", cwd=tmp_path).code == 2
    assert gossamer("dynamics", "run", "-m", "none", cwd=tmp_path).code == 3
