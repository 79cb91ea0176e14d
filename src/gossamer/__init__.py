"""Gossamer: decide what may be zero, train it that way, and make the zeros pay.

The public verbs are imported on first use, so that `import gossamer` stays quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_VERBS = {
    "compile": "gossamer.engine.compiler",
    "Plan": "gossamer.engine.runtime",
    "shrink": "gossamer.engine.shrink",
    "Recipe": "gossamer.sparsify.recipe",
    "Sparsifier": "gossamer.sparsify.sparsifier",
    "prune_": "gossamer.recipes.oneshot",
    "unlearn": "gossamer.reuse.unlearning.api",
}
_MODULES = ("data", "engine", "kernels", "models", "recipes", "sparsify", "training")

__all__ = [*_VERBS, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    if name in _MODULES:
        return import_module(f"gossamer.{name}")
    raise AttributeError(f"module 'gossamer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
