"""The record of the last full run of each paper: `results/<slug>.json`."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gossamer
from gossamer.claims.sources import ROOT, fingerprint
from gossamer.errors import DataError
from gossamer.runs.files import write_json

FORMAT = 1
CHECKOUT = ROOT.parents[1]

__all__ = ["fingerprint", "in_checkout", "is_stale", "read_result", "results_folder", "write_result"]


def in_checkout() -> bool:
    """Whether this package runs from a source checkout, whose `results/` a full run may rewrite."""
    return (CHECKOUT / "pyproject.toml").is_file() and ROOT.parent.name == "src"


def results_folder() -> Path:
    """`results/` of the checkout, or the copy inside the installed package."""
    return CHECKOUT / "results" if in_checkout() else ROOT / "results"


def read_result(slug: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The record of `slug`, or None where it was never run.

    Raises:
        DataError: the file is damaged, of another paper, or of a newer format.
    """
    path = (folder or results_folder()) / f"{slug}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; run `gossamer reproduce {slug}` to write it anew") from error
    if not isinstance(record, dict) or record.get("slug") != slug or not isinstance(record.get("claims"), list):
        raise DataError(f"{path} is no record of {slug!r}; run `gossamer reproduce {slug}` to write it anew")
    if record.get("format") != FORMAT:
        raise DataError(f"{path} has format {record.get('format')}; this version reads format {FORMAT}")
    return record


def write_result(outcome: dict[str, Any], module: str, folder: Path | None = None) -> Path:
    """Atomically record the outcome of `reproduce` with date, versions, machine and fingerprint."""
    import torch

    record = {
        "format": FORMAT,
        **outcome,
        "fingerprint": fingerprint(module),
        "measured_on": datetime.now(UTC).date().isoformat(),
        "versions": {
            "gossamer": gossamer.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "machine": f"{platform.system()} {platform.machine()}",
    }
    path = (folder or results_folder()) / f"{outcome['slug']}.json"
    write_json(path, record)
    return path


def is_stale(record: dict[str, Any], module: str) -> bool:
    """Whether code that the paper's module imports has changed since `record` was written."""
    return record.get("fingerprint") != fingerprint(module)
