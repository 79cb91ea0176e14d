"""Calibration in bounded memory: what goes into each layer, measured after the layers before it were changed.

A trial run on the first batch finds the order of the layers, which of them share an input, and the chains: lists of
blocks in which each block takes the hidden state of the one before it. Along a chain the hidden states are carried
from block to block, so that one pass over the model serves all its blocks; layers outside of chains are measured by
running the model up to them. One unit's statistics exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ConfigError, DataError, NumericsError
from .prunable import Layer

Batch = Any
Forward = Callable[[nn.Module, Batch], Any]
SAMPLES = 128  # of calibration, as the papers of SparseGPT and Wanda take
_CHUNK = 2**24  # entries of unfolded inputs that are held at once


class _Enough(Exception):  # noqa: N818
    """Everything that a run was to show has been seen."""


@dataclass
class Statistics:
    """Sums over the calibration samples of one unit's inputs.

    Attributes:
        gram: (groups, columns, columns) X^T X, or None where only squares are wanted. squares: (groups, columns).
        samples: rows of X.
    """

    squares: Tensor
    gram: Tensor | None
    samples: int = 0

    def add(self, x: Tensor) -> None:
        """x: (groups, samples, columns)."""
        if self.gram is not None:
            self.gram += x.transpose(1, 2) @ x
        self.squares += x.square().sum(1)
        self.samples += x.shape[1]


@dataclass(frozen=True)
class Unit:
    """Layers that see one and the same input, and how often the model calls them in one pass."""

    layers: tuple[Layer, ...]
    calls: int


Measure = Callable[[bool], Statistics]


def plain_forward(model: nn.Module, batch: Batch) -> Any:
    """Call a model on a batch: a mapping by its keywords, a tuple or list (inputs, labels, ...) by its inputs."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def take_batches(calibration: Iterable[Batch], samples: int | None, device: torch.device) -> list[Batch]:
    """The first batches with at least `samples` samples together (None: all), on `device`.

    Raises:
        DataError: there are none. NumericsError: one holds NaN or infinity.
    """
    kept: list[Batch] = []
    count = 0
    for number, batch in enumerate(calibration):
        batch = dict(batch) if isinstance(batch, Mapping) else batch
        tensors = [t for t in tree_leaves(batch) if torch.is_tensor(t)]
        if not tensors:
            raise DataError(f"calibration batch {number} holds no tensor, it is a {type(batch).__name__}")
        if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors):
            raise NumericsError(f"calibration batch {number} holds NaN or infinite values")
        kept.append(tree_map(lambda t: t.to(device) if torch.is_tensor(t) else t, batch))
        count += tensors[0].shape[0] if tensors[0].ndim else 1
        if samples is not None and count >= samples:
            break
    if not kept:
        raise DataError("the calibration data are empty")
    return kept


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and without the key-value cache of Hugging Face models."""
    training = {name: m.training for name, m in model.named_modules()}
    configs = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if c is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", False) is True]
    for config in caching:  # an encoder-decoder model has several
        config.use_cache = False
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for name, m in model.named_modules():
            m.training = training[name]
        for config in caching:
            config.use_cache = True


# ---------------------------------------------------------------------- the trial run


@dataclass
class _Call:
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

    def without_hidden(self) -> _Call:
        """The same call, holding no hidden state."""
        if self.args:
            return _Call((None, *self.args[1:]), self.kwargs)
        return _Call((), {**self.kwargs, "hidden_states": None})

    def again(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call the block with another hidden state."""
        if self.args:
            return _first(block(hidden, *self.args[1:], **self.kwargs))
        return _first(block(**{**self.kwargs, "hidden_states": hidden}))


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) and output else output


@contextmanager
def _hooks(handles: Iterable[Any]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


@contextmanager
def _recorded(blocks: Mapping[str, nn.Module], calls: dict[str, list[_Call]]) -> Iterator[None]:
    """Record the calls of some modules."""

    def before(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: calls.setdefault(name, []).append(_Call(args, kwargs))

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name][-1].output = output

        return hook

    first = [m.register_forward_pre_hook(before(n), with_kwargs=True) for n, m in blocks.items()]
    with _hooks([*first, *(m.register_forward_hook(after(n)) for n, m in blocks.items())]):
        yield


@dataclass
class Plan:
    """What a trial run found: units in order of execution, chains by name of their list, layers never called."""

    units: list[Unit]
    chains: dict[str, list[str]]
    idle: list[str]


def make_plan(model: nn.Module, layers: list[Layer], batch: Batch, forward: Forward) -> Plan:
    """Run the model once on `batch` and look. Raises DataError where it does not take the batch."""
    lists = _lists(model, layers)
    children = {name: model.get_submodule(name) for names in lists.values() for name in names}
    calls: dict[str, list[_Call]] = {}
    seen: dict[int, list[tuple[Tensor, int]]] = {}  # layer -> its inputs and their versions, which also keeps them

    def watch(number: int) -> Callable[..., None]:
        return lambda module, args: seen.setdefault(number, []).append((args[0], args[0]._version))

    watches = (layer.module.register_forward_pre_hook(watch(i)) for i, layer in enumerate(layers))
    with _hooks(watches), _recorded(children, calls):
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


def _lists(model: nn.Module, layers: list[Layer]) -> dict[str, list[str]]:
    """Lists of at least two blocks that hold prunable layers, outer ones first."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            blocks = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
            if any(_within(layer, block) for layer in layers for block in blocks):
                found[name] = blocks
    return found


def _within(layer: Layer, block: str) -> bool:
    return layer.name.startswith(f"{block}.")


def _is_chain(blocks: list[str], calls: dict[str, list[_Call]]) -> bool:
    """Whether every block is called once, on the hidden state that the block before it returned."""
    if any(len(calls.get(block, ())) != 1 for block in blocks):
        return False
    once = [calls[block][0] for block in blocks]
    if not all(torch.is_tensor(call.hidden) and torch.is_tensor(_first(call.output)) for call in once):
        return False
    return all(_first(a.output) is b.hidden for a, b in pairwise(once))


def _independent(
    model: nn.Module, blocks: list[str], calls: dict[str, list[_Call]], batch: Batch, forward: Forward
) -> bool:
    """Whether what the blocks are given beside the hidden state does not depend on it: disturb it and compare."""
    if not any(torch.is_tensor(leaf) for block in blocks for leaf in calls[block][0].side):
        return True
    again: dict[str, list[_Call]] = {}

    def disturb(module: nn.Module, args: Any, output: Any) -> Any:
        changed = _first(output) * 1.01 + 0.01
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    first = model.get_submodule(blocks[0]).register_forward_hook(disturb)
    with _hooks([first]), _recorded({name: model.get_submodule(name) for name in blocks}, again):
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


# ---------------------------------------------------------------------- the walk


@dataclass
class Walk:
    """All units of a model in order of execution, each with a way to measure what goes into it now.

    Whoever iterates changes the layers of a unit before asking for the next, so that later units are measured behind
    the changed ones.

    Args:
        batches: as `take_batches` gives them. forward: how the model is called on one.
    """

    model: nn.Module
    layers: list[Layer]
    batches: list[Batch]
    forward: Forward = plain_forward
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = make_plan(self.model, self.layers, self.batches[0], self.forward)

    def __iter__(self) -> Iterator[tuple[Unit, Measure]]:
        done: set[int] = set()
        for unit in self.plan.units:
            if id(unit) in done:
                continue
            chain = next((c for c in self.plan.chains.values() if any(_unit_in(unit, block) for block in c)), None)
            if chain is None:
                yield unit, partial(self._measure, unit, self._whole)
                continue
            done |= {id(u) for u in self.plan.units if any(_unit_in(u, block) for block in chain)}
            yield from self._along(chain)

    def _whole(self, number: int) -> None:
        self.forward(self.model, self.batches[number])

    def _along(self, chain: list[str]) -> Iterator[tuple[Unit, Measure]]:
        """The units of a chain, block by block; only hidden states and side inputs of the batches are kept."""
        hidden, calls = self._capture(chain)
        for name in chain:
            block = self.model.get_submodule(name)

            def run(number: int, name: str = name, block: nn.Module = block) -> Tensor:
                return calls[number][name].again(block, hidden[number].clone())  # it may work in place

            for unit in (u for u in self.plan.units if _unit_in(u, name)):
                yield unit, partial(self._measure, unit, run)
            for number in range(len(hidden)):
                hidden[number] = run(number)

    def _capture(self, chain: list[str]) -> tuple[list[Tensor], list[dict[str, _Call]]]:
        """For every batch the hidden state in front of the chain, and what else each of its blocks is given."""
        hidden, calls = [], []
        for number in range(len(self.batches)):
            seen: dict[str, _Call] = {}

            def keep(name: str, seen: dict[str, _Call], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                call = _Call(args, kwargs)
                if name == chain[0]:
                    hidden.append(call.hidden.clone())
                seen[name] = call.without_hidden()
                if name == chain[-1]:
                    raise _Enough

            with _hooks([self._before(name, partial(keep, name, seen)) for name in chain]), suppress(_Enough):
                self._whole(number)
            calls.append(seen)
        return hidden, calls

    def _before(self, name: str, look: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Any:
        """Have `look` called with the arguments of a module before each of its calls; returns the hook."""
        return self.model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, kwargs: look(args, kwargs), with_kwargs=True
        )

    def _measure(self, unit: Unit, run: Callable[[int], Any], gram: bool) -> Statistics:
        """Sum up the inputs of a unit over all batches, running each only up to the unit's last call."""
        layer = unit.layers[0]
        columns, device = torch.Size(layer.shape[1:]).numel(), layer.weight.device
        zeros = torch.zeros(layer.groups, columns, dtype=torch.float64, device=device)
        square = torch.zeros(layer.groups, columns, columns, dtype=torch.float64, device=device) if gram else None
        sums = Statistics(zeros, square)
        number = calls = 0

        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal calls
            calls += 1
            self._add(sums, layer, args[0], number)
            if calls == unit.calls:
                raise _Enough

        with _hooks([layer.module.register_forward_pre_hook(read)]):
            for number in range(len(self.batches)):
                calls = 0
                with suppress(_Enough):
                    run(number)
        if not sums.samples:
            raise DataError(f"no calibration sample reaches {layer.name}")
        return sums

    def _add(self, sums: Statistics, layer: Layer, x: Tensor, number: int) -> None:
        if not bool(torch.isfinite(x).all()):
            raise NumericsError(f"calibration batch {number} brings NaN or infinite inputs to {layer.name}")
        x = self._unpadded(x, number)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        spread = torch.Size(layer.shape[2:]).numel()
        whole = x.ndim <= 1 + len(layer.shape[2:])  # one sample without a batch dimension
        pieces = (x,) if whole else x.split(max(1, _CHUNK // max(1, x[:1].numel() * spread)))
        for piece in pieces:
            sums.add(layer.rows(piece))

    def _unpadded(self, x: Tensor, number: int) -> Tensor:
        """The positions that the batch's attention mask does not hide, for token inputs (B, length, features)."""
        batch = self.batches[number]
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if mask is None or mask.ndim != 2 or x.ndim != 3 or x.shape[:2] != mask.shape:
            return x
        return x[mask.bool()]


def _unit_in(unit: Unit, block: str) -> bool:
    return _within(unit.layers[0], block)


def check_calibration(calibration: Iterable[Batch] | None, score: str) -> Iterable[Batch]:
    """The calibration data. Raises ConfigError where a score needs them and there are none to iterate over."""
    if calibration is None or not hasattr(calibration, "__iter__"):
        given = "" if calibration is None else f", not a {type(calibration).__name__}"
        raise ConfigError(f"the score {score!r} needs calibration data: prune_(..., calibration=loader){given}")
    return calibration
