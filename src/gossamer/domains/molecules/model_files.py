"""Trained networks in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gossamer.errors import CheckpointError, ConfigError
from gossamer.runs.files import atomic

from .basis import Layout
from .network import Shape, SPHNet
from .paths import PathGate


def save_model(path: str | Path, model: SPHNet) -> Path:
    """Write a trained network with its gates and settings (.safetensors). Freeze after loading, not before.

    Raises ConfigError for a frozen network.
    """
    from safetensors.torch import save_file

    if any(name.endswith("own.product.coefficients") for name in model.state_dict()):
        raise ConfigError("save the network before `freeze`; freezing is repeated after loading")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    path = Path(path)
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"gossamer": json.dumps(model.settings())})
    return path


def load_model(path: str | Path) -> SPHNet:
    """Read what `save_model` wrote. Raises CheckpointError for a damaged or foreign file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), "pt") as file:
            made: dict[str, Any] = json.loads((file.metadata() or {})["gossamer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = SPHNet(Layout(made["basis"], tuple(made["elements"])), Shape(**made["shape"]))
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no network of `gossamer molecules train` ({error})") from error
    settled = any("gate.kept" in name for name in tensors)
    for module in model.modules():
        if settled and isinstance(module, PathGate):
            module.phase = "fixed"  # what was saved is a choice already
    return model.eval()
