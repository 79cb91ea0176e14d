"""A trained model from its files: what the engine's commands work on."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.prune import find_weights
from gossamer.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gossamer.data import Dataset
    from gossamer.training.config import Config

SHRINK_PLAN = "shrink-plan.json"
Source = Annotated[Path, typer.Argument(help="Folder of a saved model or run, or a safetensors file.")]
Shape = Annotated[
    str | None, typer.Option("--shape", metavar="C,H,W", help="Of one input; default: that of the run's data.")
]


@dataclass(frozen=True)
class Saved:
    """A model in evaluation mode, a random example, and what the folder of a run says about it.

    Attributes:
        weights: the safetensors file. config, data: of the run; None where the model was named by options.
    """

    model: nn.Module
    example: Tensor
    weights: Path
    config: Config | None = None
    data: Dataset | None = None

    @property
    def settings(self) -> Path:
        """The run's config.yaml, which may be missing."""
        return self.weights.with_name("config.yaml")


def saved_model(source: Path, name: str | None, shape: str | None, batch: int) -> Saved:
    """The model that a folder or a safetensors file holds.

    Raises:
        ConfigError: neither the folder nor the options say which model it is. CheckpointError: damaged weights, or of
            another model. DataError: no such file.
    """
    from gossamer.data import load
    from gossamer.models import build, load_weights
    from gossamer.training.config import Config, load_config

    weights = find_weights(source)
    settings, sizes = weights.with_name("config.yaml"), _sizes(shape)
    config: Config | None = None
    data: Dataset | None = None
    if name is not None:
        if sizes is None:
            raise ConfigError("--model needs --shape, such as --shape 3,32,32")
        options: dict[str, Any] = {"shape": sizes}
    elif settings.exists():
        config = load_config(settings, kind=Config)
        data = load(config.data.name, **{"seed": config.train.seed, **config.data.options})
        name, sizes = config.model.name, sizes or tuple(data.shape)
        options = {"shape": sizes, "classes": data.classes}
    else:
        raise ConfigError(f"{weights} has no config.yaml beside it: name the model by --model and --shape")
    own = config.model.options if config else {}
    model = build(name, **(own if _is_users(name) else options | own))
    _take_shape(model, weights.with_name(SHRINK_PLAN))
    load_weights(model, weights)
    return Saved(model.eval(), _example(batch, sizes), weights, config, data)


def _example(batch: int, sizes: tuple[int, ...]) -> Tensor:
    import torch

    return torch.randn(batch, *sizes, generator=torch.Generator().manual_seed(0))


def _is_users(name: str) -> bool:
    """A builder of the user's own, which knows its shape; it may lie in the current folder."""
    if ":" not in name:
        return False
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return True


def _take_shape(model: nn.Module, plan: Path) -> None:
    """The shapes of a model that `shrink` made smaller, where its plan lies beside the weights.

    Raises:
        CheckpointError: the plan is damaged, or belongs to another model.
    """
    import json

    from gossamer.sparsify.surgery import apply_shrink_plan

    if not plan.exists():
        return
    try:
        changes = json.loads(plan.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {plan}: {error}") from error
    apply_shrink_plan(model, changes)


def _sizes(shape: str | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    try:
        sizes = tuple(int(part) for part in shape.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--shape takes positive sizes such as 3,32,32, got {shape!r}")
    return sizes


def new_file(path: Path) -> Path:
    """A path for a file to be written. Raises ConfigError where it is a folder, before any work is done."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file, such as {path / 'model'}{path.suffix or '.plan'}")
    return path


def new_folder(path: Path, source: Saved) -> Path:
    """A folder for a changed model.

    Raises:
        ConfigError: it is a file, the folder of the model itself, or the folder of a run, whose weights would be lost.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; name a folder for the model")
    if path.resolve() == source.weights.parent.resolve():
        raise ConfigError(f"{path} holds the model that is to be changed; name another folder by --output")
    if (path / "status.json").exists():
        raise ConfigError(f"{path} holds a run, whose weights would be lost; name another folder by --output")
    return path


def save_changed(folder: Path, model: nn.Module, source: Saved) -> Path:
    """Write a changed model's weights, and beside them the settings it was trained with, each atomically."""
    from safetensors.torch import save_file

    from gossamer.runs.files import atomic, write_text

    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "model.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    if source.settings.exists():  # so that the other commands know the model
        write_text(folder / "config.yaml", source.settings.read_text(encoding="utf-8"))
    return folder / "model.safetensors"
