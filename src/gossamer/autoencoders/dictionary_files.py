"""Autoencoders that dictionary_learning saved: `ae.pt` and `config.json`, read without running their code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import Gated, JumpReLU, MutualChoice, ReLU, Selection, TokenChoice
from gossamer.errors import CheckpointError, ConfigError, unknown

CONFIG, WEIGHTS = "config.json", "ae.pt"
State = dict[str, Tensor]


def _linear(state: State) -> State:
    """Of the classes whose encoder and decoder are `nn.Linear`."""
    return {"encoder": state["encoder.weight"], "decoder": state["decoder.weight"].t(), "b_enc": state["encoder.bias"]}


def _bare(state: State) -> State:
    """Of the classes with bare parameters."""
    return {"encoder": state["W_enc"].t(), "decoder": state["W_dec"], "b_enc": state["b_enc"], "b_dec": state["b_dec"]}


def _relu(state: State) -> tuple[Selection, State]:
    return ReLU(None), _linear(state) | {"b_dec": state["bias"]}


def _topk(state: State) -> tuple[Selection, State]:
    return TokenChoice(int(state["k"])), _linear(state) | {"b_dec": state["b_dec"]}


def _batch_topk(state: State) -> tuple[Selection, State]:
    return MutualChoice(float(state["k"])), _linear(state) | {"b_dec": state["b_dec"]} | _threshold(state)


def _matryoshka(state: State) -> tuple[Selection, State]:
    return MutualChoice(float(state["k"])), _bare(state) | _threshold(state)


def _threshold(state: State) -> State:
    """The threshold of single tokens, below 0 where none was estimated."""
    value, features = state["threshold"], max(state["b_enc" if "b_enc" in state else "encoder.bias"].shape)
    known = torch.full((features,), bool(value >= 0))
    return {"threshold": value.clamp_min(0).float().expand(features), "calibrated": known}


def _gated(state: State) -> tuple[Selection, State]:
    found = {"encoder": state["encoder.weight"], "decoder": state["decoder.weight"].t(), "b_dec": state["decoder_bias"]}
    return Gated(None), found | {"b_enc": state["gate_bias"], "r_mag": state["r_mag"], "b_mag": state["mag_bias"]}


def _jumprelu(state: State) -> tuple[Selection, State]:
    """Its encoder does not subtract b_dec from the input; ours does, so the bias takes it back."""
    found = _bare(state)
    found["b_enc"] = found["b_enc"] + found["encoder"] @ found["b_dec"]
    return JumpReLU(None), found | {"log_threshold": state["threshold"].clamp_min(1e-12).log()}


READS: dict[str, Callable[[State], tuple[Selection, State]]] = {
    "AutoEncoder": _relu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
}


def load_dictionary_learning(folder: str | Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """An autoencoder in evaluation mode and its `config.json`; decoder rows keep the lengths that they were saved with.

    Raises:
        CheckpointError: missing or damaged files, or a class that is not read.
    """
    folder = Path(folder)
    config, state = _config(folder / CONFIG), _state(folder / WEIGHTS)
    name = str(config.get("trainer", {}).get("dict_class"))
    if name not in READS:
        raise CheckpointError(f"{folder}: {unknown('class of dictionary_learning', name, READS)}")
    try:
        select, found = READS[name](state)
        features, d = found["encoder"].shape
        groups = state["group_sizes"].cumsum(0).tolist() if "group_sizes" in state else None
        sae = SparseAutoencoder(d, features, select, prefixes=groups)
        own = sae.state_dict()
        sae.load(own | {key: value.to(own[key].dtype).contiguous() for key, value in found.items()})
    except (KeyError, ValueError, RuntimeError, ConfigError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is damaged or no {name}: {error!r}") from error
    return sae.eval(), config


def _config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return dict(value)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _state(path: Path) -> State:
    """Tensors only: `weights_only` refuses everything else that a pickle could hold."""
    try:
        found: State = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no tensors by name")
    return found
