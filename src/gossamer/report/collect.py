"""From finished runs on disk to a comparison: which files count as runs, how arms are grouped and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gossamer.errors import ConfigError, DataError
from gossamer.report.card import Comparison, ReportCard, comparison
from gossamer.report.experiment import ROLES, card
from gossamer.runs.folder import RunFolder, flat
from gossamer.training.config import Config

Outcome = Mapping[str, Any]


def outcomes(paths: Iterable[Path]) -> tuple[list[Outcome], list[str]]:
    """The finished runs below `paths` (run folders, or folders that hold some), and one remark per unfinished run.

    Raises:
        DataError: a path that is no folder, or holds no finished run; a result that cannot be read.
    """
    found: dict[Path, Outcome] = {}
    remarks: list[str] = []
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path} is no folder of runs")
        folders = sorted(config.parent for config in path.rglob("config.yaml"))
        done = {folder: result for folder in folders if (result := _result(folder))}
        remarks += [_unfinished(folder) for folder in folders if folder not in done]
        if not done:
            raise DataError(". ".join([f"{path} holds no finished run", *map(_unfinished, folders)]))
        found |= done
    return list(found.values()), remarks


def _result(folder: Path) -> Outcome | None:
    result = RunFolder(folder).result()
    if result is None or "card" not in result:
        return None
    try:
        Config(**result["config"])
        return {**result, "fit": dict(result["fit"]), "calibration": dict(result["calibration"])}
    except (ConfigError, KeyError, TypeError) as error:
        raise DataError(f"the result in {folder} is of another version or damaged: {error}") from error


def _unfinished(folder: Path) -> str:
    status = RunFolder(folder).status() or {"state": "not begun", "step": 0, "reason": ""}
    reason = f": {status['reason']}" if status["reason"] else ""
    return f"{folder} is not finished ({status['state']} at step {status['step']}{reason})"


def compared(runs: Sequence[Outcome], **fields: Any) -> Comparison:
    """Runs that differ only in their seed are one arm; arms are named by recipe and by what else tells them apart.

    Args:
        fields: `title`, `command` and `control` of the comparison.
    Raises:
        DataError: runs without test figures, two of one seed, or of another version. ConfigError: several data sets.
    """
    arms: dict[str, list[Outcome]] = {}
    for run in runs:
        config = run["config"]
        key = json.dumps({**config, "train": {**config["train"], "seed": 0}}, sort_keys=True)
        arms.setdefault(key, []).append(run)
    names = labels([arm[0]["config"] for arm in arms.values()])
    command = fields.get("command", "")
    return comparison([_card(name, arm, command) for name, arm in zip(names, arms.values(), strict=True)], **fields)


def _card(name: str, arm: Sequence[Outcome], command: str) -> ReportCard:
    seeds = [run["config"]["train"]["seed"] for run in arm]
    if len(set(seeds)) != len(seeds):
        raise DataError(
            f"{name}: two runs have the same arguments and the same seed ({sorted(seeds)}); give one of them"
        )
    if any(run["card"] is None or run["fit"]["test"] is None for run in arm):
        raise DataError(f"{name}: a model that was not measured on data cannot be compared; prune it with --data")
    try:
        made = card(arm, role=ROLES.get(arm[0]["config"]["recipe"]["name"], "method"), command=command)
    except (ValidationError, KeyError, TypeError) as error:
        raise DataError(f"{name}: its result is of another version or damaged: {error}") from error
    recalibrated = all(run["card"]["batchnorm_recalibrated"] for run in arm)
    return made.model_copy(update={"method": name, "batchnorm_recalibrated": recalibrated})


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each configuration: its recipe, and the settings in which namesakes differ.

    >>> dense, rigl = {"recipe": {"name": "dense"}}, {"recipe": {"name": "rigl", "options": {"sparsity": 0.9}}}
    >>> labels([dense, rigl, {"recipe": {"name": "rigl", "options": {"sparsity": 0.95}}}])
    ['dense', 'rigl sparsity=0.9', 'rigl sparsity=0.95']
    """
    settings = [{k: v for k, v in flat(config).items() if k != "train.seed"} for config in configs]
    names = []
    for own in settings:
        recipe = str(own["recipe.name"])
        namesakes = [other for other in settings if other["recipe.name"] == own["recipe.name"]]
        keys = dict.fromkeys(key for other in namesakes for key in other)
        differing = [k for k in keys if k in own and any(other.get(k, ...) != own[k] for other in namesakes)]
        names.append(" ".join([recipe, *(f"{k.rpartition('.')[2]}={own[k]}" for k in differing)]))
    return names
