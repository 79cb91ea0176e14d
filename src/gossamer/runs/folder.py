"""A run's folder: its configuration, log, checkpoints, result and status.

config.yaml   log.jsonl   status.json   result.json   checkpoints/step-00000100.json (+ .safetensors),
best.json
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from gossamer.errors import CheckpointError, ConfigError
from gossamer.runs.checkpoint import delete_state, load_meta, load_state, save_state
from gossamer.runs.files import clear_leftovers, write_json, write_text
from gossamer.runs.trees import Tree

State = Literal["running", "done", "interrupted", "failed"]
_FILES = ("config.yaml", "log.jsonl", "status.json", "result.json")
_MODEL = ("model.safetensors", "masks.safetensors", "sparsity.json")  # written by `model_files`


class RunFolder:
    """A folder that holds one run. Open it with `RunFolder.open`; `RunFolder(path)` only reads.

    Args:
        path: the folder. keep: how many of the newest checkpoints stay; the best one stays besides.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigError(f"keep={keep}: at least one checkpoint must stay")
        self.path, self.keep = Path(path), keep
        self.checkpoints = self.path / "checkpoints"
        self.log_path = self.path / "log.jsonl"

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        free: Collection[str] = (),
        keep: int = 2,
    ) -> RunFolder:
        """Make the folder, or take it up again.

        Args:
            config: the arguments of the run, YAML values. resume: go on with a run of the same arguments; a
                folder without a run begins one. overwrite: remove the run that is there. free: keys (`a.b`)
                that may differ on resume.
        Raises:
            ConfigError: the folder holds a run (and neither flag is set) or other files; an argument has
                changed.
        """
        run = cls(path, keep)
        config = json.loads(json.dumps(config))  # what YAML will give back: tuples are lists, keys are text
        if run.config_path.exists() and resume and not overwrite:
            same_config(run.config(), config, free)
            clear_leftovers(run.path)
            clear_leftovers(run.checkpoints)
            return run
        if run.path.exists():
            run._make_room(overwrite)
        write_text(run.config_path, yaml.safe_dump(config, sort_keys=False))
        return run

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    def config(self) -> dict[str, Any]:
        """The arguments of the run. Raises ConfigError where config.yaml is damaged."""
        try:
            config = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {self.config_path}: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config_path} holds no settings")
        return config

    def _make_room(self, overwrite: bool) -> None:
        """Remove the run that is here, and nothing else."""
        if not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; choose a folder for the run")
        if not any(self.path.iterdir()):
            return
        if not self.config_path.exists():
            raise ConfigError(f"{self.path} holds files but no run; choose a new folder")
        if not overwrite:
            raise ConfigError(
                f"{self.path} holds a run; resume it (--resume), replace it (--overwrite) or go elsewhere"
            )
        self.clear()

    def clear(self) -> None:
        """Remove the run: its files and checkpoints, and nothing else that lies there."""
        for name in (*_FILES, *_MODEL):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    # checkpoints

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, ascending."""
        names = self.checkpoints.glob("step-*.json") if self.checkpoints.is_dir() else ()
        return sorted(int(name.stem[5:]) for name in names if name.stem[5:].isdigit())

    def save(self, step: int, tree: Tree, meta: Mapping[str, Any] | None = None, score: float | None = None) -> Path:
        """Save a checkpoint, drop those that are too old, and keep it as the best one if `score` says so.

        Args:
            step: optimiser steps done. tree, meta: as for `save_state`. score: larger is better; None does
                not compete.
        """
        meta = dict(meta or {}) | {"step": step, "score": score}
        path = save_state(self._step_path(step), tree, meta)
        if score is not None and score > self.best_score():
            save_state(self.checkpoints / "best.json", tree, meta)
        for old in self.steps()[: -self.keep]:
            delete_state(self._step_path(old))
        return path

    def best_score(self) -> float:
        """The score of the best checkpoint; minus infinity where there is none that can be read."""
        try:
            return float(load_meta(self.checkpoints / "best.json")["score"])
        except CheckpointError:
            return float("-inf")

    def latest(self) -> tuple[Tree, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None where none was written.

        A damaged one is passed over with a warning.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        error: CheckpointError | None = None
        for step in reversed(self.steps()):
            try:
                return load_state(self._step_path(step))
            except CheckpointError as caught:
                error = caught
                warnings.warn(f"{caught}; trying the checkpoint before it", stacklevel=2)
        if error:
            raise CheckpointError(f"no checkpoint in {self.checkpoints} can be read; the oldest: {error}") from error
        return None

    def best(self) -> tuple[Tree, dict[str, Any]]:
        """The checkpoint with the largest score. Raises CheckpointError where there is none."""
        return load_state(self.checkpoints / "best.json")

    def _step_path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}.json"

    # status and result

    def set_status(self, state: State, step: int, reason: str = "") -> None:
        write_json(self.path / "status.json", {"state": state, "step": step, "reason": reason})

    def status(self) -> dict[str, Any] | None:
        """`{"state", "step", "reason"}`; None before the first.

        A run that was killed still says "running".
        """
        return _read_json(self.path / "status.json")

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """What the finished run measured; None where it has not finished."""
        return _read_json(self.path / "result.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys. An empty section is a value of its own.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping) and value
        values |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return values


def same_config(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Check that a run is resumed with the arguments it began with.

    Raises:
        ConfigError: names the first key that changed, with both values.
    """
    old, new = flat(before), flat(now)
    absent = object()
    for key in old | new:
        was, wanted = old.get(key, absent), new.get(key, absent)
        if key not in free and was != wanted:
            said = ["not set" if value is absent else repr(value) for value in (was, wanted)]
            raise ConfigError(
                f"cannot resume with a changed argument: {key} was {said[0]}, is now {said[1]}. "
                "Use the first value, or begin another run"
            )
