"""The files that users keep of a model: `model.safetensors`, dense with exact zeros, and `sparsity.json` beside it.

Plain PyTorch and Hugging Face load the weights; `sparsity.json` says which zeros are meant: per tensor the density
and a hash of the bit-packed mask, which stands in `masks.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.bitmap import pack, packed_shape, unpack
from .files import atomic, write_json
from .trees import load_model

FORMAT, VERSION = "gossamer-sparsity", 1


def _hash(bits: Tensor) -> str:
    return hashlib.sha256(bits.numpy().tobytes()).hexdigest()


def save_model(
    folder: str | Path, model: nn.Module, masks: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
) -> Path:
    """Write `model.safetensors`, `masks.safetensors` and `sparsity.json` into `folder`, each atomically.

    Args:
        masks: parameter name -> bool mask of its shape; may be empty.
        about: JSON values to keep beside them, such as the recipe or a shrink plan.
    Raises:
        CheckpointError: a masked weight is not 0, or the files cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in _unique(model).items()}
    packed = {name: pack(mask.cpu()) for name, mask in masks.items()}
    rows = {}
    for name, mask in masks.items():
        leaked = int(state[name][~mask.cpu()].count_nonzero())
        if leaked:
            raise CheckpointError(f"{leaked} masked weights of {name} are not zero; call Sparsifier.enforce() first")
        rows[name] = {
            "shape": list(mask.shape),
            "kept": int(mask.sum()),
            "density": float(mask.float().mean()),
            "sha256": _hash(packed[name]),
        }
    try:
        with atomic(folder / "model.safetensors") as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        with atomic(folder / "masks.safetensors") as temporary:
            save_file(packed, temporary)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the model into {folder}: {error}") from error
    write_json(
        folder / "sparsity.json", {"format": FORMAT, "version": VERSION, "tensors": rows, "about": dict(about or {})}
    )
    return folder / "model.safetensors"


def _unique(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tensors that share memory copied, as safetensors wants."""
    seen: set[int] = set()
    state = {}
    for name, value in model.state_dict().items():
        state[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return state


def load_sparsity(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The masks of a saved model, checked against their hashes, and what was kept beside them.

    Raises:
        CheckpointError: missing, altered, or of a newer version.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "sparsity.json").read_text(encoding="utf-8"))
        packed = load_file(folder / "masks.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no readable sparse model: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{folder / 'sparsity.json'} is not a file of {FORMAT}")
    if record.get("version") != VERSION:
        raise CheckpointError(f"{folder / 'sparsity.json'} has version {record.get('version')}, this reads {VERSION}")
    masks = {}
    for name, row in record["tensors"].items():
        bits = packed.get(name)
        if bits is None or tuple(bits.shape) != packed_shape(row["shape"]) or _hash(bits) != row["sha256"]:
            raise CheckpointError(f"the mask of {name} in {folder} is missing or altered")
        masks[name] = unpack(bits, row["shape"])
    return masks, record["about"]


def load_weights(folder: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Load a saved model into `model` and return its masks; masked weights must be 0.

    Raises:
        CheckpointError: unreadable, of another model, or masks and weights disagree.
    """
    masks, _ = load_sparsity(folder)
    try:
        state = load_file(Path(folder) / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {Path(folder) / 'model.safetensors'}: {error}") from error
    for name, mask in masks.items():
        if name not in state or bool(torch.count_nonzero(state[name][~mask])):
            raise CheckpointError(f"weights and mask of {name} in {folder} disagree")
    load_model(model, state)
    return masks
