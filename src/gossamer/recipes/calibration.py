"""Calibration in bounded memory: what goes into each layer, measured after the layers before it were changed.

A trial run (trial.py) finds the order of the layers and the chains. Along a chain the hidden states are carried from
block to block, so that one pass over the model serves all its blocks; layers outside of chains are measured by running
the model up to them. One unit's statistics exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ConfigError, DataError, NumericsError
from .prunable import Layer
from .trial import Batch, Call, Forward, Plan, Unit, hooks, make_plan, within

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

    def _capture(self, chain: list[str]) -> tuple[list[Tensor], list[dict[str, Call]]]:
        """For every batch the hidden state in front of the chain, and what else each of its blocks is given."""
        hidden, calls = [], []
        for number in range(len(self.batches)):
            seen: dict[str, Call] = {}

            def keep(name: str, seen: dict[str, Call], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                call = Call(args, kwargs)
                if name == chain[0]:
                    hidden.append(call.hidden.clone())
                seen[name] = call.without_hidden()
                if name == chain[-1]:
                    raise _Enough

            with hooks([self._before(name, partial(keep, name, seen)) for name in chain]), suppress(_Enough):
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

        with hooks([layer.module.register_forward_pre_hook(read)]):
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
    return within(unit.layers[0], block)


def check_calibration(calibration: Iterable[Batch] | None, score: str) -> Iterable[Batch]:
    """The calibration data. Raises ConfigError where a score needs them and there are none to iterate over."""
    if calibration is None or not hasattr(calibration, "__iter__"):
        given = "" if calibration is None else f", not a {type(calibration).__name__}"
        raise ConfigError(f"the score {score!r} needs calibration data: prune_(..., calibration=loader){given}")
    return calibration
