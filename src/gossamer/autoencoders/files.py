"""Autoencoders on disk: our own folder, and SAELens' format in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossamer.autoencoders.dictionary_files import WEIGHTS as WEIGHTS_OF_DICTIONARY_LEARNING
from gossamer.autoencoders.dictionary_files import load_dictionary_learning
from gossamer.autoencoders.export import folded, to_jumprelu
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import Gated, JumpReLU, ReLU, Selection, TokenChoice
from gossamer.errors import CheckpointError, ConfigError, unknown
from gossamer.runs.files import atomic, write_json

FORMAT = "gossamer-sae"
CONFIG, WEIGHTS = "sae.json", "sae.safetensors"
LENS_CONFIG, LENS_WEIGHTS = "cfg.json", "sae_weights.safetensors"
LENS_VERSION = "6.54.12"  # of SAELens, whose layout is written
READS = ("standard", "topk", "jumprelu", "gated", "transcoder", "jumprelu_transcoder")


def save(folder: str | Path, sae: SparseAutoencoder, about: Mapping[str, Any] | None = None) -> Path:
    """Write `sae.json` and `sae.safetensors`: weights and every estimated constant.

    Args:
        about: JSON values to keep beside it, such as the model and module that it is for.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, sae.state_dict())
    write_json(folder / CONFIG, {"format": FORMAT, "sae": sae.config(), "about": dict(about or {})})
    return folder


def load(folder: str | Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """An autoencoder in evaluation mode, and what was kept beside it; of our format, SAELens' or dictionary_learning's.

    Raises:
        CheckpointError: missing, damaged, or of another architecture.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists() and (folder / LENS_CONFIG).exists():
        return load_saelens(folder)
    if not (folder / CONFIG).exists() and (folder / WEIGHTS_OF_DICTIONARY_LEARNING).exists():
        return load_dictionary_learning(folder)
    record = _json(folder / CONFIG)
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG} is no file of {FORMAT}")
    try:
        sae = SparseAutoencoder.from_config(record["sae"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no autoencoder: {error}") from error
    sae.load(_tensors(folder / WEIGHTS))
    return sae.eval(), dict(record.get("about") or {})


def save_saelens(folder: str | Path, sae: SparseAutoencoder, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors` as SAELens reads them, scales folded in.

    Mutual and feature choice become JumpReLU with their thresholds.

    Raises:
        ConfigError: thresholds that are not known yet, or a transcoder that SAELens has no architecture for.
    """
    sae = folded(to_jumprelu(sae) if sae.select.couples else sae)
    architecture, weights = _to_lens(sae)
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d,
        "d_sae": sae.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not sae.transcodes,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": LENS_VERSION, "sae_lens_training_version": None, **(metadata or {})},
    }
    if sae.transcodes:
        config["d_out"] = sae.d_out
    if isinstance(sae.select, TokenChoice):
        config |= {"k": int(sae.select.k), "rescale_acts_by_decoder_norm": False}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / LENS_WEIGHTS, {name: value.float() for name, value in weights.items()})
    write_json(folder / LENS_CONFIG, config)
    return folder


def _to_lens(sae: SparseAutoencoder) -> tuple[str, dict[str, Tensor]]:
    select = sae.select
    weights = {"W_enc": sae.encoder.t(), "W_dec": sae.decoder, "b_dec": sae.b_dec, "b_enc": sae.b_enc}
    if isinstance(select, JumpReLU):
        weights["threshold"] = sae.learned_threshold()
        return ("jumprelu_transcoder" if sae.transcodes else "jumprelu"), weights
    if isinstance(select, ReLU):
        return ("transcoder" if sae.transcodes else "standard"), weights
    if sae.transcodes:
        raise ConfigError(f"SAELens has no {select.name!r} transcoder; train mutual choice or ReLU to export")
    if isinstance(select, Gated):
        weights["b_gate"] = weights.pop("b_enc")
        return "gated", weights | {"r_mag": sae.r_mag, "b_mag": sae.b_mag}
    return "topk", weights


def load_saelens(folder: str | Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """An autoencoder that SAELens saved, and its metadata. Older files (before 6.0) are read where they say enough.

    Raises:
        CheckpointError: missing or damaged files, an architecture or a normalisation of inputs that is not read.
    """
    folder = Path(folder)
    config, tensors = _json(folder / LENS_CONFIG), _tensors(folder / LENS_WEIGHTS)
    kind = str(config.get("architecture", "standard"))
    old = config.get("activation_fn_kwargs") or {}
    if kind == "standard" and config.get("activation_fn", config.get("activation_fn_str")) == "topk":
        kind, config["k"] = "topk", old.get("k")  # before 6.0 TopK was an activation of the standard kind
    if kind not in READS:
        raise CheckpointError(f"{folder}: {unknown('architecture of SAELens', kind, READS)}")
    transcodes = kind.endswith("transcoder")
    for key, wanted in (
        ("normalize_activations", "none"),
        ("reshape_activations", "none"),
        ("apply_b_dec_to_input", not transcodes),
        ("rescale_acts_by_decoder_norm", False),
    ):
        if config.get(key, wanted) != wanted:
            raise CheckpointError(f"{folder} was trained with {key}={config[key]!r}; only {wanted!r} is read")
    try:
        d, features = int(config["d_in"]), int(config["d_sae"])
        select = _from_lens(kind, config, features)
        d_out = int(config["d_out"]) if transcodes else None
        sae = SparseAutoencoder(d, features, select, d_out=d_out)
        sae.load(dict(sae.named_buffers()) | _renamed(kind, tensors))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is damaged or no {kind!r} autoencoder: {error!r}") from error
    return sae.eval(), dict(config.get("metadata") or {})


def _from_lens(kind: str, config: Mapping[str, Any], features: int) -> Selection:
    if kind == "topk":
        return TokenChoice(int(config["k"]))
    if kind.startswith("jumprelu"):
        return JumpReLU(None)
    return Gated(None) if kind == "gated" else ReLU(None)


def _renamed(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"W_enc": "encoder", "W_dec": "decoder", "threshold": "log_threshold", "b_gate": "b_enc"}
    out = {names.get(name, name): tensor.float() for name, tensor in tensors.items()}
    out["encoder"] = out["encoder"].t().contiguous()
    if "log_threshold" in out:
        out["log_threshold"] = out["log_threshold"].clamp_min(1e-12).log()
    return out


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic(path) as temporary:
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, temporary)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value
