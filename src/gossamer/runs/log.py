"""The log of a run: one JSON object per line, always; experiment trackers beside it on request."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gossamer.errors import CheckpointError, DataError, MissingExtra, unknown
from gossamer.runs.files import atomic

# name that a user types -> the package that Accelerate's tracker of that name needs
TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


def plain(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinity become text, scalars of torch and numpy become numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


class JsonLog:
    """Appends records to a file, each flushed as one line.

    A last line that a crash tore is cut off when the file is opened again.

    Raises:
        CheckpointError: the folder cannot be written.

    >>> log = JsonLog("run/log.jsonl"); log.write({"step": 1, "loss": 0.7})          # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                _cut_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write the log {self.path}: {error.strerror}") from error

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Forget the records of steps after `step`: they will be run, and logged, again."""
        kept = [record for record in read_log(self.path) if record.get("step", 0) <= step]
        self._file.close()
        with atomic(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """All whole records of a log; a torn last line is ignored.

    Raises:
        DataError: a line before the last is no JSON object; it is named by its number.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty or torn
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is no JSON") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is no JSON object")
        records.append(record)
    return records


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def check_trackers(names: Sequence[str]) -> list[str]:
    """The trackers to hand to `accelerate.Accelerator(log_with=...)`.

    Raises:
        ConfigError: an unknown name. MissingExtra: its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise MissingExtra(TRACKERS[name], "trackers")
    return list(names)
