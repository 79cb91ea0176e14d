"""The one table of models that users name, and `build`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from gossamer.errors import ConfigError, unknown
from gossamer.models.convnet import convnet, lenet5, lenet_300_100, vgg19
from gossamer.models.efficientnet import efficientnet_b0
from gossamer.models.language import llama
from gossamer.models.mlp import mlp
from gossamer.models.mobilenet import digits_mobilenet, mobilenet_v1, mobilenet_v2
from gossamer.models.resnet import CifarResNet, WideResNet, resnet18, resnet50
from gossamer.models.unet import UNet
from gossamer.models.vit import vit_b16, vit_s16, vit_tiny

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet5,
    "convnet": convnet,
    "mobilenet-digits": digits_mobilenet,
    "vgg-19": vgg19,
    "resnet-20": partial(CifarResNet, 20),
    "resnet-32": partial(CifarResNet, 32),
    "resnet-44": partial(CifarResNet, 44),
    "resnet-56": partial(CifarResNet, 56),
    "resnet-110": partial(CifarResNet, 110),
    "wide-resnet": WideResNet,
    "resnet-18": resnet18,
    "resnet-50": resnet50,
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "efficientnet-b0": efficientnet_b0,
    "vit-tiny": vit_tiny,
    "vit-s16": vit_s16,
    "vit-b16": vit_b16,
    "llama": llama,
    "unet": UNet,
}


def build(name: str, **options: Any) -> nn.Module:
    """A model by its name in `MODELS`, or any module by import path "package.module:callable".

    Args:
        name: a key of `MODELS` or an import path. Only paths that you trust: importing runs code.
        options: keyword arguments of the builder; those of `MODELS` all take `shape` (of one input) and
            `classes`.
    Raises:
        ConfigError: unknown name, option or path, or a callable that returns no `nn.Module`.

    >>> build("mlp", shape=(1, 8, 8), hidden=(32,)).fc1
    Linear(in_features=64, out_features=32, bias=False)
    """
    builder = _imported(name) if ":" in name else MODELS.get(name)
    if builder is None:
        raise unknown("model", name, MODELS)
    _check_options(name, builder, options)
    model = builder(**options)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_options(name: str, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses what the builder's signature refuses; a builtin without a signature checks for itself."""
    try:
        signature = inspect.signature(builder)
    except ValueError:
        return
    parameters = signature.parameters
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                raise unknown(f"option of model {name!r}", option, parameters)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"model {name!r}: {error}") from error


def _imported(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        found = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import model {path!r} (package.module:callable): {error}") from error
    if not callable(found):
        raise ConfigError(f"model {path!r} is a {type(found).__name__}, not a callable that builds a module")
    return found
