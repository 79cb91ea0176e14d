"""Hugging Face models: upcycle in place, save with `save_pretrained`, load again; CLIP through the whole method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import CheckpointError, ConfigError, MissingExtra, unknown
from gossamer.experts import routers
from gossamer.experts.ffn import parse, skeleton
from gossamer.experts.layer import moe_layers
from gossamer.experts.routing import Router
from gossamer.experts.upcycling import put

KEY = "gossamer_experts"  # entry of config.json
ROUTERS = {kind.__name__: kind for kind in (routers.TopK, routers.ExpertChoice, routers.Transport, routers.Sinkhorn)}


def encode_clip(model: nn.Module, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text embeddings (B, d) of a `CLIPModel`, as the contrastive stages call it."""
    images = model.get_image_features(pixel_values=pixel_values)  # type: ignore[operator]
    texts = model.get_text_features(input_ids=input_ids)  # type: ignore[operator]
    return _tensor(images), _tensor(texts)


def save(model: nn.Module, folder: str | Path) -> None:
    """`save_pretrained`, with the layout of the expert layers in config.json, where `load` finds it.

    Raises:
        ConfigError: no Hugging Face model, no expert layer, layers with an own dispatch or router.
    """
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(f"{type(model).__name__} has no save_pretrained; save its state_dict() with safetensors")
    note(model)
    model.save_pretrained(folder)  # type: ignore[operator]


def note(model: nn.Module) -> None:
    """Write the layout of the expert layers in `model.config`, so that a plain `save_pretrained` keeps it."""
    layers = {}
    for name, layer in moe_layers(model).items():
        router, dispatch = type(layer.router).__name__, getattr(layer.dispatch, "__name__", "")
        if router not in ROUTERS:
            raise unknown("router in a saved model", router, ROUTERS)
        layers[name] = {
            "experts": len(layer.experts.up),
            "hidden": layer.experts.down.shape[2],
            "dropout": layer.experts.dropout,
            "router": {"name": router, **asdict(layer.router)},  # type: ignore[call-overload]
            "dispatch": dispatch,
            "biased": layer.selection_bias is not None,
        }
    setattr(model.config, KEY, {"version": 1, "class": type(model).__name__, "layers": layers})


def load(folder: str | Path, **options: Any) -> nn.Module:
    """The model that `save` wrote, from a local folder, in evaluation mode.

    Args:
        options: passed to the configuration.
    Raises:
        MissingExtra: transformers. CheckpointError: no such model, another version, or weights that do not fit.
    """
    transformers = _transformers()
    from safetensors.torch import load_file

    folder = Path(folder)
    layout = _layout(folder)
    kind = getattr(transformers, layout["class"], None)
    if kind is None:
        raise CheckpointError(f"{folder} holds a {layout['class']}, which this version of transformers does not have")
    model: nn.Module = kind(kind.config_class.from_pretrained(folder, local_files_only=True, **options))
    build(model, layout)
    values: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        values |= load_file(file)
    _fill(model, values, folder)
    return model.eval()


def build(model: nn.Module, layout: dict[str, Any]) -> None:
    """Put expert layers of this layout in a dense model; their weights mean nothing yet."""
    for name, entry in layout["layers"].items():
        try:
            ffn = parse(model.get_submodule(name))
        except AttributeError:
            ffn = None
        if ffn is None:
            raise CheckpointError(f"the checkpoint has experts in {name}, where this architecture has no network")
        settings = dict(entry["router"])
        router: Router = ROUTERS[settings.pop("name")](**settings)
        experts = skeleton(ffn, entry["experts"], entry["hidden"], entry["dropout"])
        layer = put(model, name, experts, router, entry["dispatch"])
        if entry["biased"]:
            layer.selection_bias = torch.zeros(entry["experts"])


def _fill(model: nn.Module, values: dict[str, Tensor], folder: Path) -> None:
    for name, value in model.state_dict().items():
        if name in values and values[name].shape != value.shape:
            shapes = tuple(values[name].shape), tuple(value.shape)
            raise CheckpointError(f"{folder}: {name} is {shapes[0]}, the model needs {shapes[1]}")
    missing, extra = model.load_state_dict(values, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    gone = [name for name in missing if name not in tied]
    if gone or extra:
        raise CheckpointError(
            f"{folder} is a checkpoint of another architecture: missing {gone[:3]}, unexpected {list(extra)[:3]}"
        )
    if tied:
        model.tie_weights()  # type: ignore[operator]


def has_experts(folder: str | Path) -> bool:
    """Whether a checkpoint folder was written by `save`."""
    try:
        return KEY in json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _layout(folder: Path) -> dict[str, Any]:
    try:
        layout = json.loads((folder / "config.json").read_text(encoding="utf-8"))[KEY]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder} holds no model with experts: config.json needs {KEY!r}, which gossamer.experts.save writes"
        ) from None
    if layout.get("version") != 1:
        raise CheckpointError(f"{folder} was written by another version ({layout.get('version')!r}) of this format")
    found: dict[str, Any] = layout
    return found


def dense_clip(source: str | Path | dict[str, Any]) -> nn.Module:
    """A `CLIPModel` from a local checkpoint folder, or with random weights from the fields of a `CLIPConfig`.

    Raises:
        MissingExtra: transformers. CheckpointError: the folder is no CLIP checkpoint.
    """
    transformers = _transformers()
    if isinstance(source, dict):
        model: nn.Module = transformers.CLIPModel(transformers.CLIPConfig(**source))
        return model
    try:
        kind = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} is no checkpoint folder with a config.json: {error}") from None
    if kind != "clip":
        raise CheckpointError(f"{source} is a checkpoint of another architecture ({kind!r}); a 'clip' model is needed")
    loaded: nn.Module = transformers.CLIPModel.from_pretrained(source, local_files_only=True)
    return loaded


def without_first(names: Sequence[str], frozen: int, tower: str = "vision_model") -> list[str]:
    """The names without the first so many of one tower: blocks that stay dense and frozen."""
    mine = [name for name in names if name.startswith(tower)]
    return [name for name in names if name not in mine[:frozen]]


def _tensor(output: Any) -> Tensor:
    """Embeddings; newer versions return them inside an output object."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    return transformers
