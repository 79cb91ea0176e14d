"""Sparse autoencoders: dictionaries for the activations of networks, their training, their use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "model": ("SparseAutoencoder",),
    "selection": ("TokenChoice", "MutualChoice", "FeatureChoice", "ReLU", "Gated", "JumpReLU", "make"),
    "budgets": ("Zipf", "fit_zipf"),
    "losses": ("AuxK", "AuxZipf"),
    "training": ("Plan", "Switch", "train", "optimiser"),
    "metrics": ("Figures", "absorption", "measure"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
