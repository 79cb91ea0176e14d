"""The execution engine: trained sparse networks as plans that run as one native call, and sparse layers."""

from importlib import import_module
from typing import Any

# Imported on first use: `gossamer.engine.runtime` runs plans without torch.
_NAMES = {
    "Plan": "gossamer.engine.runtime",
    "PlanReport": "gossamer.engine.report",
    "compile": "gossamer.engine.compiler",
    "export": "gossamer.engine.onnx",
    "shrink": "gossamer.engine.shrink",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'gossamer.engine' has no attribute {name!r}")
