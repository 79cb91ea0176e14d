"""Hugging Face models: upcycle in place, save with `save_pretrained`, load again; CLIP through the whole method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import CheckpointError, ConfigError, MissingExtra, unknown
from gossamer.experts import routers
from gossamer.experts.ffn import parse, skeleton
from gossamer.experts.layer import MoE, moe_layers
from gossamer.experts.loose import gather
from gossamer.experts.padding import masked, until_end
from gossamer.experts.routing import Router
from gossamer.experts.upcycling import put

KEY = "gossamer_experts"  # entry of config.json
ROUTERS = {kind.__name__: kind for kind in (routers.TopK, routers.ExpertChoice, routers.Transport, routers.Sinkhorn)}


def encode_clip(model: nn.Module, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text embeddings (B, d) of a `CLIPModel`, as the contrastive stages call it.

    Experts of the text tower see a text up to its end, not the padding behind it, which changes no embedding.
    """
    images = model.get_image_features(pixel_values=pixel_values)  # type: ignore[operator]
    with _without_padding(model, input_ids):
        texts = model.get_text_features(input_ids=input_ids)  # type: ignore[operator]
    return _tensor(images), _tensor(texts)


def _without_padding(model: Any, ids: Tensor) -> AbstractContextManager[None]:
    tower, kind = model.text_model, getattr(model.config, "model_type", None)
    if kind != "clip" or not any(isinstance(module, MoE) for module in tower.modules()):
        return nullcontext()
    return masked(tower, until_end(ids, model.config.text_config.eos_token_id))


def save(model: nn.Module, folder: str | Path) -> None:
    """`save_pretrained`, with the layout of the expert layers in config.json, where `load` finds it.

    Raises:
        ConfigError: no Hugging Face model, no expert layer, layers with an own dispatch or router.
    """
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(f"{type(model).__name__} has no save_pretrained; save its state_dict() with safetensors")
    note(model)
    model.save_pretrained(folder, save_original_format=False)  # type: ignore[operator]


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
    """The model that `save` wrote, from a local folder, in evaluation mode and of the type that it was saved in.

    Args:
        options: passed to `from_pretrained`, such as dtype=torch.bfloat16.
    Raises:
        MissingExtra: transformers. CheckpointError: no such model, another version, or weights that do not fit.
    """
    transformers, folder = _transformers(), Path(folder)
    layout = _layout(folder)
    kind = getattr(transformers, layout["class"], None)
    if kind is None:
        raise CheckpointError(f"{folder} holds a {layout['class']}, which this version of transformers does not have")

    class WithExperts(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **others: Any) -> None:
            super().__init__(*args, **others)
            build(self, layout)

    model = _loaded(WithExperts, folder, **options)
    model.__class__ = kind
    for p in model.parameters():  # out of the mapped file, where they may lie unaligned and sums round otherwise
        p.data = p.data.clone()
    return model


def load_dense(folder: str | Path) -> nn.Module:
    """The model of the class that a local checkpoint's config.json names, in evaluation mode; nothing is fetched.

    Raises:
        MissingExtra: transformers. CheckpointError: no such folder or class, experts in it, tensors that do not fit.
    """
    transformers, folder = _transformers(), Path(folder)
    if has_experts(folder):
        raise CheckpointError(f"{folder} holds a model with experts, where a dense one is needed")
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        kind = getattr(transformers, name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint that transformers can load: {error!r}; download a model and give its folder"
        ) from None
    return _loaded(kind, folder)


def _loaded(kind: Any, folder: Path, **options: Any) -> nn.Module:
    """`from_pretrained`, and an error where it would make up weights that the folder does not have."""
    from safetensors import SafetensorError

    how = {"local_files_only": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with _quiet():
            model, found = kind.from_pretrained(folder, **how, **options)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot read the model in {folder}: {error}") from None
    for name, *shapes in sorted(found["mismatched_keys"]):
        raise CheckpointError(f"{folder}: {name} is {tuple(shapes[0])}, the model needs {tuple(shapes[1])}")
    # a pooler is left out of many published checkpoints, as it serves one pre-training task
    gone = sorted(name for name in found["missing_keys"] if "pooler." not in name)
    if gone:
        extra = sorted(found["unexpected_keys"])[:3]
        raise CheckpointError(
            f"{folder} is a checkpoint of another architecture: missing {gone[:3]}, unexpected {extra}"
        )
    loaded: nn.Module = model.eval()
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of tensors that do not fit, which is an error here."""
    logging = _transformers().logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def build(model: nn.Module, layout: dict[str, Any]) -> None:
    """Put expert layers of this layout in a dense model; their weights mean nothing yet."""
    gather(model, layout["layers"])
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
    return _loaded(transformers.CLIPModel, Path(source))


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
