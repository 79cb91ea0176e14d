"""One-shot pruning of a saved model: mask once, recalibrate batch statistics, measure, keep the model's files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gossamer.data import Dataset, load
from gossamer.models import build, load_weights
from gossamer.report.experiment import TASKS, check_inputs, make_recipe, outcome_of
from gossamer.report.measure import run_fields
from gossamer.runs.folder import RunFolder
from gossamer.runs.model_files import save_model
from gossamer.sparsify.averaging import batch_norms, recalibrate_bn
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.training.config import Config


def prune(
    config: Config,
    weights: Path,
    folder: Path,
    *,
    with_data: bool = True,
    batches: int = 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Prune trained weights by a recipe that masks once, and write the model's files into a folder.

    Args:
        config: model, recipe, and data to recalibrate and to measure on. weights: a safetensors file of that model.
        with_data: False needs no data: nothing is measured, batch statistics stay as they are.
        batches: training batches whose exact means replace the batch statistics.
    Returns:
        the outcome of `experiment.run` (card and measures are None without data), with "before": the test measures of
        the weights as they were, and "recalibrated": the number of batches used.
    Raises:
        ConfigError, ShapeError: what cannot be pruned so. CheckpointError: damaged weights, or of another model.
    """
    started = time.monotonic()
    data = load(config.data.name, **{"seed": config.train.seed, **config.data.options}) if with_data else None
    recipe = make_recipe(config.recipe.name, config.recipe.options)
    task = TASKS[config.task](_model(config, data))
    load_weights(task.model, weights)
    if data:
        check_inputs(task.model, data, config)
    before = task.evaluate(data.test) if data else None
    sparsifier = Sparsifier(
        task.model,
        torch.optim.SGD(task.model.parameters(), lr=0.0),
        recipe,
        1,
        data=data.train if data else None,
        loss=task.loss,
        seed=config.train.seed,
    )
    sparsifier.enforce()
    opened = RunFolder.open(folder, config.model_dump(mode="json"), overwrite=overwrite)
    used = recalibrate_bn(task.model, data.train, min(batches, len(data.train))) if data else 0
    measured = _measured(sparsifier, data, used) if data else {}
    task.masks = {name: mask.clone() for name, mask in sparsifier.entry_masks.items()}
    history, density = sparsifier.history, sparsifier.density()
    task.model = sparsifier.finalize()
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "steps": 0,
        "seconds": time.monotonic() - started,
        "density": density,
        "val": task.evaluate(data.val) if data and data.val else None,
        "test": task.evaluate(data.test) if data else None,
        "curve": [],
        "history": history,
    }
    bare = {"config": config.model_dump(mode="json"), "fit": result, "card": None, "calibration": {}}
    outcome = outcome_of(config, task, data, result, measured) if data else bare
    outcome |= {"before": before, "recalibrated": used}
    save_model(opened.path, task.model, task.masks, {"recipe": recipe.to_yaml()})
    opened.write_result(outcome)
    opened.set_status("done", 0)
    return outcome


def _model(config: Config, data: Dataset | None) -> torch.nn.Module:
    options = dict(config.model.options)
    if data is not None and ":" not in config.model.name:
        options = {"shape": data.shape, "classes": data.classes, **options}
    return build(config.model.name, **options)


def _measured(sparsifier: Sparsifier, data: Dataset, recalibrated: int) -> dict[str, Any]:
    """Fields of the card. Nothing was trained here, so the costs of training are absent."""
    fields = run_fields(sparsifier, data.test.batch(0)[0][:1], trained=True)
    absent = ("steps", "training_flops", "training_flops_dense", "training_flops_executed", "peak_density")
    return {
        **fields,
        **dict.fromkeys(absent),
        "trained_after_mask": False,
        "batchnorm_recalibrated": recalibrated > 0 or not batch_norms(sparsifier.model),
    }
