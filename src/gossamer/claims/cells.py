"""Finished trainings on disk, so that an interrupted reproduction goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gossamer.claims.sources import fingerprint
from gossamer.errors import CheckpointError
from gossamer.runs.files import write_json

log = logging.getLogger(__name__)

VARIABLE = "GOSSAMER_CACHE"


def cache_folder() -> Path:
    """`$GOSSAMER_CACHE`, or `gossamer` in the user's cache folder."""
    named = os.environ.get(VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "gossamer"


def cell(module: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`compute()`, or what it returned earlier for the same settings and the same code.

    Args:
        module: the code whose fingerprint (with all it imports) is part of the key.
        settings: JSON values that determine the result.
        compute: returns a dict of finite JSON values.
    """
    key = json.dumps({"settings": settings, "code": fingerprint(module)}, sort_keys=True)
    path = cache_folder() / "cells" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            result: dict[str, Any] = kept["result"]
            return result
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: computed anew
    result = json.loads(json.dumps(compute(), allow_nan=False))  # what a later run will read
    try:
        write_json(path, {"key": key, "result": result})
    except CheckpointError as error:
        log.warning("result not cached: %s", error)
    return result
