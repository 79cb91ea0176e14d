"""What a model and its example must be, asked before anything is traced or measured."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine.runtime import check_input
from gossamer.errors import ConfigError

NOISY = ("torch.fx.experimental.symbolic_shapes", "torch.onnx")  # what they say stands in our own errors and reports


def check_model(model: Any) -> None:
    """Raises ConfigError unless this is a module in evaluation mode, in float32 on the CPU."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        name = next(name for name, module in model.named_modules() if module.training)
        raise ConfigError(f"the model{f' ({name})' if name else ''} is in training mode; call model.eval() first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype in (torch.float64, torch.float16, torch.bfloat16) or tensor.dtype.is_complex:
            raise ConfigError(f"a plan computes in float32, but {name} is {tensor.dtype}; use model.float()")
        if tensor.device.type != "cpu":
            raise ConfigError(f"a plan runs on the CPU, but {name} is on {tensor.device}; use model.cpu()")


def check_example(example: Any) -> None:
    """Raises ConfigError unless this is one float32 tensor with a batch and at least one feature."""
    if not isinstance(example, Tensor):
        raise ConfigError(f"a plan is compiled for one example tensor, got {type(example).__name__}")
    if example.dim() < 2 or not example.numel():
        raise ConfigError(f"the example needs a batch and at least one feature, got shape {tuple(example.shape)}")
    if not example.is_floating_point() and not example.is_complex():
        raise ConfigError(
            f"a plan computes in float32, the example is {example.dtype}; token numbers and such need mode='modules'"
        )
    check_input(tuple(example.shape), str(example.dtype), tuple(example.shape[1:]))


@torch.no_grad()
def answer(model: nn.Module, example: Any) -> Any:
    """The model's output for an example: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        ConfigError: the model fails on it; the message names the module where.
    """
    entered: list[str] = []

    def enter(name: str) -> Any:
        return lambda module, inputs: entered.append(name)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        entered.pop()

    watched = {name: m for name, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in watched.items()]
    handles += [module.register_forward_hook(leave) for module in watched.values()]
    try:
        if isinstance(example, Mapping):
            return model(**example)
        return model(*(example if isinstance(example, tuple) else (example,)))
    except Exception as error:  # whatever the model's code raises
        layer = entered[-1] if entered else ""
        place = f"in its layer {layer!r}" if layer else "in its own code"
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"the model does not accept the example ({_described(example)}): {place}, {type(error).__name__}: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _described(example: Any) -> str:
    """Shapes of tensors, types of other things."""
    if isinstance(example, Mapping):
        return ", ".join(f"{key}: {_described(value)}" for key, value in example.items())
    if isinstance(example, tuple):
        return ", ".join(map(_described, example))
    return f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Without what torch's tracer and exporter log and print to stderr."""
    loggers = [logging.getLogger(name) for name in NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
