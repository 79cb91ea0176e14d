"""Learned models on disk (npz without pickles) and picture files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import CheckpointError, ConfigError, DataError, MissingExtra, unknown
from ...runs.files import atomic
from .em import Run
from .estimator import SparseCoder
from .models import (
    BinarySparseCoding,
    DiscreteSparseCoding,
    MaximalCauses,
    MaxMagnitudeCauses,
    SpikeSlabSparseCoding,
    TernarySparseCoding,
)

Array = NDArray[np.float64]
MODELS: dict[str, type[SparseCoder]] = {
    "bsc": BinarySparseCoding,
    "tsc": TernarySparseCoding,
    "dsc": DiscreteSparseCoding,
    "mca": MaximalCauses,
    "mmca": MaxMagnitudeCauses,
    "gsc": SpikeSlabSparseCoding,
}
FORMAT = 1
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def model(name: str) -> type[SparseCoder]:
    """The estimator class of a short name of `MODELS`."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def save(coder: SparseCoder, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a fitted estimator: settings as JSON, parameters as arrays.

    Args:
        about: remarks of your own, JSON values; `load` gives them back as `about_`.
    Raises:
        ConfigError: it is not fitted. CheckpointError: the file cannot be written.
    """
    if not hasattr(coder, "params_"):
        raise ConfigError("only a fitted estimator can be saved: call fit first")
    name = next(name for name, kind in MODELS.items() if kind is type(coder))
    kept = ("n_components", "n_candidates", "max_active", "missing", "dtype", "states", "penalty", "noise")
    settings = {key: value for key, value in coder.get_params(deep=False).items() if key in kept}
    head = {
        "format": FORMAT,
        "model": name,
        "settings": settings,
        "features": coder.n_features_in_,
        "log_likelihood": coder.log_likelihood_,
        "history": coder.history_,
        "about": dict(about or {}),
    }
    arrays = {f"param_{key}": value.detach().cpu().numpy() for key, value in coder.params_.items()}
    with atomic(Path(path)) as temporary, temporary.open("wb") as handle:
        np.savez(handle, head=np.array(json.dumps(head)), **arrays)  # type: ignore[arg-type]


def load(path: str | Path) -> SparseCoder:
    """The estimator that `save` wrote, ready for transform, posterior and score, on the CPU.

    Raises:
        CheckpointError: missing, damaged, of another format, or arrays that do not fit together.
    """
    data = _bytes(Path(path))
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            params = {
                key.removeprefix("param_"): torch.from_numpy(file[key])
                for key in file.files
                if key.startswith("param_")
            }
        if head["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {head['format']}; this version reads {FORMAT}")
        coder = model(head["model"])(**head["settings"])
        wanted = (head["features"], coder.n_components)
        if tuple(params["W"].shape) != wanted:
            raise CheckpointError(f"{path}: the dictionary is {tuple(params['W'].shape)}, not {wanted}")
        coder._keep(Run(params, head["history"], head["log_likelihood"], len(head["history"]["log_likelihood"])))
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} is damaged, or no model that `coding learn` made: {reason}") from error
    coder.n_features_in_ = head["features"]
    coder.about_ = dict(head.get("about", {}))
    return coder


def _bytes(path: Path) -> bytes:
    """The file's content, if it is an archive as `save` writes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the model {path}: {error.strerror}") from error
    if not data.startswith(b"PK"):
        raise CheckpointError(f"{path} is no model of sparse coding; `gossamer coding learn` makes one (.npz)")
    return data


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "sparse_coding") from error
    return Image


def read_picture(path: str | Path) -> Array:
    """A picture file as float64 in [0, 1]: (h, w) where it is grey, else (h, w, 3). Transparency is dropped.

    Raises:
        DataError: missing, damaged, or no picture. MissingExtra: Pillow is not installed.
    """
    Image = _pillow()
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.float64) / 65535
            kept = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            return np.asarray(kept).astype(np.float64) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read picture {path}: {error}") from error


def write_picture(path: str | Path, picture: Array) -> None:
    """Write (h, w) or (h, w, 3) in [0, 1] with 8 bits, atomically; what lies outside is clipped.

    Raises:
        DataError: an unknown file suffix. CheckpointError: the file cannot be written.
    """
    Image, path = _pillow(), Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"cannot write {path}: choose one of {', '.join(SUFFIXES)}")
    values = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    kinds = {"jpg": "JPEG", "tif": "TIFF"}
    suffix = path.suffix.lower().removeprefix(".")
    with atomic(path) as temporary:
        Image.fromarray(values).save(temporary, format=kinds.get(suffix, suffix.upper()))
