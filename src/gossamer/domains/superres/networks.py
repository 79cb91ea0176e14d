"""The one table of super-resolution networks: full size, and small ones for a laptop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError, unknown
from ...runs.model_files import load_sparsity, load_weights, save_model
from .cat import CAT
from .data import check_scale
from .edsr import EDSR
from .swinir import SwinIR

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "edsr-l": EDSR,
    "edsr-baseline": partial(EDSR, width=64, depth=16, factor=1.0),
    "edsr-small": partial(EDSR, width=16, depth=2, factor=1.0, skip=True),
    "swinir-light": SwinIR,
    "swinir-small": partial(SwinIR, width=24, depths=(2, 2), heads=4, window=4),
    "cat-r": CAT,
    "cat-small": partial(CAT, width=24, depths=(2, 2), heads=4, window=(2, 8), ratio=2.0, final=16),
}


def build(name: str, scale: int, **options: Any) -> nn.Module:
    """A network of NETWORKS with fresh weights. Raises ConfigError for an unknown name or scale."""
    if name not in NETWORKS:
        raise unknown("super-resolution network", name, NETWORKS)
    check_scale(scale)
    return NETWORKS[name](scale=scale, **options)


def save(folder: str | Path, model: nn.Module, name: str, masks: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Keep a network: dense weights with exact zeros, its masks, its name and scale."""
    save_model(folder, model, masks, {"network": name, "scale": model.scale, **about})


def load(folder: str | Path) -> nn.Module:
    """A network that `save` kept, in evaluation mode. Raises CheckpointError for anything else."""
    _, about = load_sparsity(folder)
    if about.get("network") not in NETWORKS or not isinstance(about.get("scale"), int):
        raise CheckpointError(f"{folder} holds no super-resolution network, its record names {about.get('network')!r}")
    model = build(about["network"], about["scale"])
    load_weights(folder, model)
    return model.eval()
