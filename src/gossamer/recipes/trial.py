"""The trial run of calibration: in which order a model calls its layers, which share an input, which form chains.

A chain is a list of blocks in which each takes the hidden state of the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import DataError
from .prunable import Layer

Batch = Any
Forward = Callable[[nn.Module, Batch], Any]


@dataclass(frozen=True)
class Unit:
    """Layers that see one and the same input, and how often the model calls them in one pass."""

    layers: tuple[Layer, ...]
    calls: int


@dataclass
class Call:
    """One call of a block: hidden state in and out, and everything else that it was given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def hidden(self) -> Any:
        return self.args[0] if self.args else self.kwargs.get("hidden_states")

    @property
    def side(self) -> list[Any]:
        named = [value for key, value in self.kwargs.items() if self.args or key != "hidden_states"]
        return tree_leaves([self.args[1:], named])

    def without_hidden(self) -> Call:
        """The same call, holding no hidden state."""
        if self.args:
            return Call((None, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, "hidden_states": None})

    def again(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call the block with another hidden state."""
        if self.args:
            return _first(block(hidden, *self.args[1:], **self.kwargs))
        return _first(block(**{**self.kwargs, "hidden_states": hidden}))


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) and output else output


@contextmanager
def hooks(handles: Iterable[Any]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


@contextmanager
def _recorded(blocks: Mapping[str, nn.Module], calls: dict[str, list[Call]]) -> Iterator[None]:
    """Record the calls of some modules."""

    def before(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: calls.setdefault(name, []).append(Call(args, kwargs))

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name][-1].output = output

        return hook

    first = [m.register_forward_pre_hook(before(n), with_kwargs=True) for n, m in blocks.items()]
    with hooks([*first, *(m.register_forward_hook(after(n)) for n, m in blocks.items())]):
        yield


@dataclass
class Plan:
    """What a trial run found: units in order of execution, chains by name of their list, layers never called."""

    units: list[Unit]
    chains: dict[str, list[str]]
    idle: list[str]


def make_plan(model: nn.Module, layers: list[Layer], batch: Batch, forward: Forward) -> Plan:
    """Run the model once on `batch` and look. Raises DataError where it does not take the batch."""
    lists = block_lists(model, layers)
    children = {name: model.get_submodule(name) for names in lists.values() for name in names}
    calls: dict[str, list[Call]] = {}
    seen: dict[int, list[tuple[Tensor, int]]] = {}  # layer -> its inputs and their versions, which also keeps them

    def watch(number: int) -> Callable[..., None]:
        return lambda module, args: seen.setdefault(number, []).append((args[0], args[0]._version))

    watches = (layer.module.register_forward_pre_hook(watch(i)) for i, layer in enumerate(layers))
    with hooks(watches), _recorded(children, calls):
        _try(model, batch, forward)
    chains: dict[str, list[str]] = {}
    for name, blocks in lists.items():
        inside = any(name.startswith(f"{block}.") or name == block for held in chains.values() for block in held)
        if not inside and _is_chain(blocks, calls) and _independent(model, blocks, calls, batch, forward):
            chains[name] = blocks
    return Plan(_units(layers, seen), chains, [layer.name for i, layer in enumerate(layers) if i not in seen])


def _try(model: nn.Module, batch: Batch, forward: Forward) -> None:
    """The first call of the model. Raises DataError where it does not take the batch."""
    try:
        forward(model, batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{type(model).__name__} cannot be run on calibration batch 0: {error}; give what it takes, or a forward"
        ) from error


def block_lists(model: nn.Module, layers: list[Layer]) -> dict[str, list[str]]:
    """Lists of at least two blocks that hold prunable layers, outer ones first."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            blocks = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
            if any(within(layer, block) for layer in layers for block in blocks):
                found[name] = blocks
    return found


def within(layer: Layer, block: str) -> bool:
    return layer.name.startswith(f"{block}.")


def _is_chain(blocks: list[str], calls: dict[str, list[Call]]) -> bool:
    """Whether every block is called once, on the hidden state that the block before it returned."""
    if any(len(calls.get(block, ())) != 1 for block in blocks):
        return False
    once = [calls[block][0] for block in blocks]
    if not all(torch.is_tensor(call.hidden) and torch.is_tensor(_first(call.output)) for call in once):
        return False
    return all(_first(a.output) is b.hidden for a, b in pairwise(once))


def _independent(
    model: nn.Module, blocks: list[str], calls: dict[str, list[Call]], batch: Batch, forward: Forward
) -> bool:
    """Whether what the blocks are given beside the hidden state does not depend on it: disturb it and compare."""
    if not any(torch.is_tensor(leaf) for block in blocks for leaf in calls[block][0].side):
        return True
    again: dict[str, list[Call]] = {}

    def disturb(module: nn.Module, args: Any, output: Any) -> Any:
        changed = _first(output) * 1.01 + 0.01
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    first = model.get_submodule(blocks[0]).register_forward_hook(disturb)
    with hooks([first]), _recorded({name: model.get_submodule(name) for name in blocks}, again):
        forward(model, batch)
    pairs = [(a, b) for n in blocks for a, b in zip(calls[n][0].side, again[n][0].side, strict=True)]
    return all(not torch.is_tensor(a) or torch.equal(a, b) for a, b in pairs)


def _units(layers: list[Layer], seen: dict[int, list[tuple[Tensor, int]]]) -> list[Unit]:
    """Layers in order of their first call, those with one input and one geometry together."""
    grouped: dict[Any, list[int]] = {}
    for number, inputs in seen.items():
        tensor, version = inputs[0]
        shared = (id(tensor), version, layers[number].geometry())
        grouped.setdefault(shared if len(inputs) == 1 else number, []).append(number)
    return [Unit(tuple(layers[n] for n in members), len(seen[members[0]])) for members in grouped.values()]
