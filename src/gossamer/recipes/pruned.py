"""What one-shot pruning found, layer by layer, and the folder that keeps it so that a stopped call goes on."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import CheckpointError, ConfigError
from ..kernels.bitmap import pack, unpack
from ..runs.checkpoint import load_state, save_state
from .prunable import Layer


@dataclass(frozen=True)
class PrunedLayer:
    """What happened to one weight.

    Attributes:
        kept, total: entries.
        error: squared change of the layer's outputs on the calibration data over their squared size (SparseGPT).
        damping: share of the Hessian's mean diagonal that was added to it; above the wanted one where it was singular.
        dead: input columns that no sample excites. samples: rows of calibration inputs.
    """

    name: str
    kept: int
    total: int
    error: float | None = None
    damping: float | None = None
    dead: int | None = None
    samples: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class OneShot:
    """The outcome of `prune_`.

    Attributes:
        layers: in the order in which they were pruned. skipped: name -> why it stayed dense.
        masks: parameter name -> bool mask of its shape (True = kept), for `runs.model_files.save_model` or retraining.
        chains: lists of blocks along which hidden states were carried; other layers were reached from the input.
    """

    layers: tuple[PrunedLayer, ...]
    skipped: dict[str, str]
    masks: dict[str, Tensor]
    chains: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Kept fraction of the pruned weights."""
        return sum(layer.kept for layer in self.layers) / sum(layer.total for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        """Everything but the masks."""
        rows = [asdict(layer) for layer in self.layers]
        return {"density": self.density, "layers": rows, "skipped": self.skipped, "chains": list(self.chains)}

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers pruned, density {self.density:.4f}"]
        for row in self.layers:
            error = "" if row.error is None else f"  error {row.error:.3g}  damping {row.damping:g}"
            dead = f"  {row.dead} dead inputs" if row.dead else ""
            lines.append(f"  {row.name}: {row.kept} of {row.total}{error}{dead}")
        lines += [f"  {name}: dense, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


@dataclass
class Record:
    """A folder with one checkpoint per unit: the pruned weights, their masks and their rows of the report."""

    folder: Path
    key: str = ""

    def open(self, key: str) -> None:
        """Begin or go on with the call whose `fingerprint` is `key`. Raises ConfigError where a file is in the way."""
        self.key = key
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"progress is a folder, and {self.folder} is a file")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"unit-{number:05d}.json"

    def save(self, number: int, layers: tuple[Layer, ...], results: list[tuple[PrunedLayer, Tensor]]) -> None:
        """Keep a finished unit."""
        tree = {
            "weights": {layer.name: layer.weight.detach() for layer in layers},
            "masks": {row.name: pack(mask.cpu()) for row, mask in results},
            "rows": [asdict(row) for row, _ in results],
        }
        save_state(self._path(number), tree, {"fingerprint": self.key})

    @torch.no_grad()
    def load(self, number: int, layers: tuple[Layer, ...]) -> list[tuple[PrunedLayer, Tensor]] | None:
        """The results of a unit that is done, its weights put in place; None if it is not done."""
        path = self._path(number)
        if not path.exists():
            return None
        tree, meta = load_state(path)
        if meta.get("fingerprint") != self.key or set(tree["weights"]) != {layer.name for layer in layers}:
            raise CheckpointError(
                f"{path} is of another model, other calibration data or other options; "
                "load the original model, or choose another folder for progress"
            )
        for layer in layers:
            layer.weight.copy_(tree["weights"][layer.name])
        shapes = {layer.name: tuple(layer.weight.shape) for layer in layers}
        rows = [PrunedLayer(**row) for row in tree["rows"]]
        device = layers[0].weight.device
        return [(row, unpack(tree["masks"][row.name], shapes[row.name]).to(device)) for row in rows]


def fingerprint(settings: list[Any], layers: list[Layer], batches: list[Any]) -> str:
    """A hash of the options, the weights and the calibration data."""
    state = hashlib.sha256(repr(settings).encode())
    tensors = [layer.weight.detach() for layer in layers] + [t for t in tree_leaves(batches) if torch.is_tensor(t)]
    for layer in layers:
        state.update(layer.name.encode())
    for tensor in tensors:
        state.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        state.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return state.hexdigest()
