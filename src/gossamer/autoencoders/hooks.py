"""Activations out of any running torch module, and changed ones back in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, unknown


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of that dotted name, such as "blocks.3". Raises ConfigError with the nearest names."""
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise unknown("module of the model", name, [n for n in modules if n])
    return modules[name]


def _tensor(output: Any, name: str) -> Tensor:
    """The activations in what a module gave: itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.dim() < 2:
        raise ConfigError(f"module {name!r} gives a {type(first).__name__}, not activations (..., d)")
    return first


def _channels_last(x: Tensor, module: nn.Module) -> Tensor:
    return x.movedim(1, -1) if isinstance(module, nn.modules.conv._ConvNd) else x


@contextmanager
def captured(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """While it is entered, the outputs (..., d) of the named modules appear in the dictionary, detached.

    Channels of convolutions come last.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with captured(model, "0") as found:
    ...     _ = model(torch.zeros(4, 2))
    >>> found["0"].shape
    torch.Size([4, 3])
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:
        module = find_module(model, name)

        def keep(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
            found[name] = _channels_last(_tensor(output, name), module).detach()

        handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it is entered, the named module gives `change(output)`; (..., d) in and out."""

    def put(module: nn.Module, _: Any, output: Any) -> Any:
        before = _tensor(output, name)
        x = _channels_last(before, module)
        after = change(x).to(x.dtype)
        if isinstance(module, nn.modules.conv._ConvNd):
            after = after.movedim(-1, 1)
        return after if output is before else type(output)((after, *output[1:]))

    handle = find_module(model, name).register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def activations(model: nn.Module, inputs: Any, *names: str) -> list[Tensor]:
    """The outputs of the named modules for one batch of inputs, each (..., d), float32."""
    with captured(model, *names) as found:
        model(inputs)
    for name in names:
        if name not in found:
            raise ConfigError(f"module {name!r} did not run; choose one that the forward pass uses")
    return [found[name].float() for name in names]
