"""Keeping a dynamics model: `model.safetensors` with the neurons' states, and `sparsity.json` beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ...errors import CheckpointError, DataError
from ...runs.checkpoint import delete_state, load_state, save_state
from ...runs.model_files import load_sparsity, load_weights, save_model
from ...runs.trees import load_model
from .learning import Budget, Data, fit, rmse, steps_down
from .model import Gated, GatedReLUMLP
from .study import model_for

STAGES = "stages"  # of an unfinished training


def save(folder: str | Path, model: Gated, system: str = "own") -> Path:
    """Write the model into `folder`, with the name of its system. Raises CheckpointError where it cannot be written."""
    widths = {"widths": [list(part.widths) for part in model.parts()]}
    return save_model(folder, model, {}, {"kind": "dynamics", "system": system, **widths, **model.counts()})


def load(folder: str | Path) -> tuple[Gated, str]:
    """The model of a folder and the name of its system. Raises CheckpointError: unreadable, or no dynamics model."""
    _, about = load_sparsity(folder)
    if about.get("kind") != "dynamics" or "system" not in about:
        raise CheckpointError(f"{folder} holds no dynamics model; make one with gossamer dynamics train")
    system, widths = about["system"], about["widths"]
    graph = len(widths) > 1
    model = model_for(system, widths[0][1:-1]) if graph else GatedReLUMLP(widths[0])
    load_weights(folder, model)
    return model, system


def train(
    model: Gated,
    data: Data,
    relus: int,
    folder: str | Path,
    *,
    steps: int = 3000,
    budget: Budget | None = None,
    seed: int = 0,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Gated, Gated]:
    """Fit a dense model, then make it sparse; the state after every stage lies in `folder` until all are done.

    Args:
        model: untrained, trained in place. steps: of the dense model. resume: go on after the last finished stage.
    Returns:
        the sparse model and the dense one; the same bits whether resumed or not.
    Raises:
        CheckpointError: a kept state of other settings, or a damaged one. Others: of `fit` and `sparsify`.
    """
    path = Path(folder) / f"{STAGES}.json"
    digest = float(sum(part.double().sum() for part in data))
    widths = [list(part.widths) for part in model.parts()]
    settings = {"relus": relus, "steps": steps, "seed": seed, "data": digest, "widths": widths}
    stages: list[Callable[[Gated], object]] = [lambda fresh: fit(fresh, data, steps, seed=seed)]
    stages += steps_down(model.relus, data, relus, budget=budget, seed=seed)
    sparse, done = model, 0
    if resume and path.exists():
        tree, meta = load_state(path)
        if meta["settings"] != settings:
            raise CheckpointError(f"{path} is of a training with {meta['settings']}, not {settings}; leave out resume")
        done = meta["done"]
        load_model(model, tree["dense"])
        sparse = copy.deepcopy(model)
        load_model(sparse, tree["sparse"])
        say(f"goes on after stage {done} of {len(stages)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages[done:], start=done + 1):
        stage(sparse)
        if number == 1:
            sparse = copy.deepcopy(model)
        say(f"stage {number} of {len(stages)}: {sparse.relus} ReLUs, error {rmse(sparse, data):.5f}")
        states = {"dense": dict(model.state_dict()), "sparse": dict(sparse.state_dict())}
        save_state(path, states, {"settings": settings, "done": number})
    delete_state(path)
    return sparse, model


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
