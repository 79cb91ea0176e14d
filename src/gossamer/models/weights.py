"""Weights from safetensors files into a freshly built model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gossamer.data.locate import find
from gossamer.errors import CheckpointError
from gossamer.models.resnet import CifarResNet


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: missing, damaged or of another format.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights {path}: {error}") from error


def load_weights(model: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Puts `weights` (a safetensors file, or name -> tensor) into `model`, all names and shapes exactly.

    The counters `num_batches_tracked` may be missing, as older files lack them. Nothing is changed on an error.

    Raises:
        CheckpointError: names or shapes that differ; the message gives the first of them.
    """
    named = read_weights(weights) if isinstance(weights, (str, Path)) else weights
    own = model.state_dict()
    missing = [name for name in own if name not in named and not name.endswith("num_batches_tracked")]
    for problem, names in (("lack", missing), ("have the unknown", [n for n in named if n not in own])):
        if names:
            raise CheckpointError(
                f"weights {problem} {names[0]!r}{_others(names)} for a {type(model).__name__}; "
                "they belong to another model"
            )
    for name, tensor in named.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"weight {name!r} has shape {tuple(tensor.shape)}, the {type(model).__name__} needs "
                f"{tuple(own[name].shape)}"
            )
    # A model built on the meta device has no storage to copy into.
    model.load_state_dict(dict(named), strict=False, assign=any(value.is_meta for value in own.values()))


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} others" if len(names) > 1 else ""


def pretrained_resnet(depth: int) -> CifarResNet:
    """A CIFAR-10 ResNet with option-A shortcuts and trained weights, in evaluation mode.

    Inputs are normalised with ImageNet's mean and standard deviation.

    Args:
        depth: 20, 32 or 44: the file resnet<depth>.safetensors in "resnet-cifar10" of `gossamer.data.find`.
    Raises:
        DataError: the file is not there.
        CheckpointError: it is damaged.
    """
    model = CifarResNet(depth)
    load_weights(model, find("resnet-cifar10", f"resnet{depth}.safetensors") / f"resnet{depth}.safetensors")
    return model.eval()
