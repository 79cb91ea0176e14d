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
    "hooks": ("activations", "captured", "replaced"),
    "language": ("LanguageModel", "load_language_model", "loss_recovered", "token_blocks"),
    "store": ("ActivationStore", "collect"),
    "files": ("load", "load_saelens", "save", "save_saelens"),
    "export": ("folded", "to_jumprelu"),
    "steering": ("edit", "steered"),
    "examples": ("survey",),
    "page": ("write_page",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
