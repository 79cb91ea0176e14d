"""Keeping a dynamics model: `model.safetensors` with the neurons' states, and `sparsity.json` beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...errors import CheckpointError, DataError
from ...runs.model_files import load_sparsity, load_weights, save_model
from .learning import Data
from .model import GatedReLUMLP


def save(folder: str | Path, model: GatedReLUMLP) -> Path:
    """Write the model into `folder`. Raises CheckpointError where it cannot be written."""
    return save_model(folder, model, {}, {"kind": "dynamics", "widths": list(model.widths), **model.counts()})


def load(folder: str | Path) -> GatedReLUMLP:
    """The model of a folder. Raises CheckpointError: unreadable, or no dynamics model."""
    _, about = load_sparsity(folder)
    if about.get("kind") != "dynamics":
        raise CheckpointError(f"{folder} holds no dynamics model; make one with gossamer dynamics train")
    model = GatedReLUMLP(about["widths"])
    load_weights(folder, model)
    return model


def read_arrays(path: str | Path, held: float = 0.1) -> tuple[Data, Data]:
    """Training and test pairs of an .npz with `inputs` (N, in) and `targets` (N, out); every tenth row is for testing.

    Raises:
        DataError: unreadable, or an array is missing or of another shape.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as found:
            x, y = (torch.tensor(found[name], dtype=torch.float32) for name in ("inputs", "targets"))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} must be an .npz with arrays `inputs` and `targets`: {error}") from error
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 10:
        raise DataError(
            f"{path}: inputs {tuple(x.shape)} and targets {tuple(y.shape)} must be (N, in), (N, out), N >= 10"
        )
    test = torch.arange(len(x)) % round(1 / held) == 0
    return (x[~test], y[~test]), (x[test], y[test])
