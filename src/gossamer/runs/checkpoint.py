"""Checkpoints: a safetensors file for the tensors and a JSON manifest for everything else.

The manifest `NAME.json` names its payload `NAME.DIGEST.safetensors` by digest. A save writes the new payload,
then
replaces the manifest: that rename is the moment at which the new checkpoint exists, so that a process killed
at any time leaves the old checkpoint or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gossamer.errors import CheckpointError
from gossamer.runs.files import commit, scratch, write_text
from gossamer.runs.trees import Tree, flatten, unflatten

FORMAT = "gossamer-state"
VERSION = 1
MAX_MANIFEST = 64 * 2**20  # bytes; a larger manifest is no manifest of ours
_CHUNK = 2**20


def save_state(path: str | Path, tree: Tree, meta: Mapping[str, Any] | None = None) -> Path:
    """Write `tree` so that `load_state` gives it back bit for bit, atomically.

    Args:
        path: the manifest; `.json` is added where it is missing. An existing checkpoint there is replaced.
        tree: nested dict, list or tuple of tensors (any device; loaded on the CPU) and JSON values. Optimiser
            state dictionaries, with their integer keys and tuples, are such trees.
        meta: JSON values kept beside it, readable by `load_meta` without reading tensors.
    Returns:
        The path of the manifest.
    Raises:
        CheckpointError: an unsupported leaf, a read-only folder, a full disk. An earlier checkpoint is
            intact.
    """
    path = _manifest_path(path)
    described, tensors = flatten(tree)
    meta_value, stray = flatten(dict(meta or {}))
    if stray:
        raise CheckpointError(f"meta holds the tensor {next(iter(stray))}; tensors belong into the tree")
    digest, size = _write_payload(path, tensors)
    body = {"format": FORMAT, "version": VERSION, "bytes": size, "payload": digest, "meta": meta_value}
    body["tree"] = described
    write_text(path, json.dumps(body | {"sha256": _digest_of(body)}, allow_nan=False))
    for stale in _payloads(path):
        if stale != _payload_path(path, digest):
            stale.unlink(missing_ok=True)
    return path


def load_state(path: str | Path) -> tuple[Tree, dict[str, Any]]:
    """Read a checkpoint: the tree, and the `meta` that was saved with it.

    Raises:
        CheckpointError: missing, truncated or altered files, a newer version, a pickle, no checkpoint at all.
    """
    path = _existing(path)
    body = _read_manifest(path)
    try:
        tensors = _read_payload(path, body["payload"], body["bytes"])
        return unflatten(body["tree"], tensors), unflatten(body["meta"], {})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: its description does not fit its tensors") from error


def load_meta(path: str | Path) -> dict[str, Any]:
    """The `meta` of a checkpoint, without reading its tensors.

    Raises CheckpointError as `load_state` does.
    """
    meta: dict[str, Any] = unflatten(_read_manifest(_existing(path))["meta"], {})
    return meta


def delete_state(path: str | Path) -> None:
    """Remove a checkpoint: the manifest first, so that it never names a payload that is gone."""
    path = _manifest_path(path)
    path.unlink(missing_ok=True)
    for payload in _payloads(path):
        payload.unlink(missing_ok=True)


def _manifest_path(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path.with_name(path.name + ".json")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    return path if path.is_file() else _manifest_path(path)


def _payload_path(path: Path, digest: str) -> Path:
    return path.with_name(f"{path.stem}.{digest[:16]}.safetensors")


def _payloads(path: Path) -> list[Path]:
    prefix, suffix = f"{path.stem}.", ".safetensors"
    length = len(prefix) + 16 + len(suffix)
    names = [name for name in os.listdir(path.parent) if name.startswith(prefix) and name.endswith(suffix)]
    return [path.with_name(name) for name in names if len(name) == length]


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, allow_nan=False).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _write_payload(path: Path, tensors: dict[str, Tensor]) -> tuple[str, int]:
    """Write the tensors under a name that holds their digest; returns the digest and the size in bytes."""
    with scratch(path) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode
        try:
            save_file(_own_storage(tensors), temporary)
            temporary.chmod(usual)  # the writer makes a file that only its owner can read
        except SafetensorError as error:
            raise OSError(str(error)) from error
        except KeyError as error:
            raise CheckpointError(f"a tensor has a type that safetensors cannot hold: {error}") from error
        digest, size = _digest_of_file(temporary), temporary.stat().st_size
        commit(temporary, _payload_path(path, digest))
    return digest, size


def _own_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, which is what the file format can hold."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != flat.numel() * flat.element_size():
            flat = flat.clone()
        seen.add(flat.untyped_storage().data_ptr())
        owned[name] = flat
    return owned


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise CheckpointError(f"{path} is too large for a checkpoint manifest{_hint(path)}")
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        body = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated, altered or no checkpoint{_hint(path)}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no Gossamer checkpoint{_hint(path)}")
    if body.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {body.get('version')}; this Gossamer reads version {VERSION}. "
            "Install the version of Gossamer that wrote it, or a newer one"
        )
    recorded = body.pop("sha256", None)
    try:
        intact = _digest_of(body) == recorded
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    return body


def _read_payload(path: Path, digest: str, size: int) -> dict[str, Tensor]:
    payload = _payload_path(path, digest)
    try:
        if payload.stat().st_size != size:
            raise CheckpointError(f"{payload} is truncated or extended: {payload.stat().st_size} bytes, not {size}")
        if _digest_of_file(payload) != digest:
            raise CheckpointError(f"{payload} is damaged: its checksum does not match")
        with safe_open(payload, "pt") as file:
            names = file.keys()  # a handle of safetensors cannot be iterated
            # Cloned, so that no tensor stays mapped to a file that a later save deletes.
            return {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {payload}: {error}") from error


def _hint(path: Path) -> str:
    """What the file looks like, where it is a common mistake."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return ""
    if start[:1] == b"\x80" or start[:2] == b"PK":
        return " (it looks like a pickle, as torch.save writes; Gossamer never unpickles files)"
    return ""
