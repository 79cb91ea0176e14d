"""Two processes that share the data learn what one does."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from members import learn

from gossamer.domains.sparse_coding import bars, models
from gossamer.training.distributed import launch

CURVES = {
    "T": ((0, 3.0), (0.5, 1.0)),
    "ncut": 1.0,
    "W_noise": ((0, 0.2), (0.5, 0.0)),
    "data_noise": 0.1,
    "partial": 0.8,
}
OPTIONS = {"n_components": 6, "n_candidates": 4, "max_active": 3, "steps": 12, "anneal": CURVES, "random_state": 0}
NAMES = ("BinarySparseCoding", "TernarySparseCoding", "MaximalCauses", "SpikeSlabSparseCoding")


def test_two_processes_are_one(tmp_path):
    data = {name: bars(300, side=3, combine="max" if name == "MaximalCauses" else "sum").Y for name in NAMES}
    for name, Y in data.items():
        np.save(tmp_path / f"{name}.npy", Y)
    launch(learn, 2, NAMES, OPTIONS, str(tmp_path))
    for name, Y in data.items():
        alone = getattr(models, name)(**OPTIONS).fit(Y)
        for rank in range(2):
            with np.load(tmp_path / f"{name}-{rank}.npz", allow_pickle=False) as found:
                for key, value in alone.params_.items():
                    np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-10, atol=1e-10)
                np.testing.assert_allclose(found["score"], alone.score(Y), rtol=1e-10)
                assert found["points"].tolist() == alone.history_["points"]
