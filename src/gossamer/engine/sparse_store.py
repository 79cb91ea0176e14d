"""Sparse layers in the place of masked dense ones, and what the optimiser knows about their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.engine.sparse_layer import SparseLinear
from gossamer.kernels.train_pattern import Pattern, gather, scatter_, transfer
from gossamer.sparsify.sparsifier import Sparsifier


class LinearStore:
    """Sparse layers in the place of a Sparsifier's linear layers: its `Store` (sparsify/stores.py).

    Args:
        layers: parameter name of each weight -> its layer.
        undo: puts the plain layers back.
    """

    def __init__(self, sparsifier: Sparsifier, layers: dict[str, SparseLinear], swaps: list[Swap]) -> None:
        self.sparsifier, self.layers, self.swaps = sparsifier, layers, swaps
        self.trained = {name: layer.weight.requires_grad for name, layer in layers.items()}
        for layer in layers.values():
            self._enter(layer)

    def expect(self, dense_gradient: bool) -> None:
        """See Store."""
        for layer in self.layers.values():
            layer.wants_dense_gradient = dense_gradient
            layer.dense_gradient = None

    def gradients(self) -> dict[str, Tensor]:
        """See Store."""
        return {
            name: layer.dense_gradient.view_as(layer.weight)
            for name, layer in self.layers.items()
            if layer.dense_gradient is not None
        }

    def write_back(self) -> None:
        """See Store."""
        for layer in self.layers.values():
            layer.write_back()

    def read(self, updated: bool) -> None:
        """See Store."""
        for name, layer in self.layers.items():
            values, before = layer.values, layer.read(self.sparsifier.entry_masks[name])
            self._follow(values, layer.values)
            if updated:
                self._carry_over(layer, before)

    def release(self) -> None:
        """See Store."""
        for name, layer in self.layers.items():
            layer.write_back()
            layer.weight.requires_grad_(self.trained[name])
            self._leave(layer)
        for swap in reversed(self.swaps):
            swap.undo()

    def _follow(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Let the optimiser train `new` where it trained `old`."""
        if new is not old:
            group, state = _group_of(self.sparsifier.optimizer, old), self.sparsifier.optimizer.state
            group["params"] = [new if p is old else p for p in group["params"]]
            if old in state:
                state[new] = state.pop(old)

    def _carry_over(self, layer: SparseLinear, before: Pattern) -> None:
        """The optimiser's buffers of entries that stay."""
        state = self.sparsifier.optimizer.state.get(layer.values, {})
        for key, buffer in state.items():
            if torch.is_tensor(buffer) and buffer.shape == (before.nonzeros,):
                state[key] = transfer(before, buffer, layer.pattern)

    def _enter(self, layer: SparseLinear) -> None:
        """The optimiser trains the values from now on; the dense weight stays in its group without a gradient."""
        weight, state = layer.weight, self.sparsifier.optimizer.state
        weight.requires_grad_(False)
        weight.grad = None
        group = _group_of(self.sparsifier.optimizer, weight)
        group["params"].append(layer.values)
        if weight in state:
            state[layer.values] = {
                key: gather(layer.pattern, value.flatten(1)) if _like(value, weight) else value
                for key, value in state.pop(weight).items()
            }

    def _leave(self, layer: SparseLinear) -> None:
        """The optimiser trains the dense weight again, with the buffers that the values had."""
        weight, state = layer.weight, self.sparsifier.optimizer.state
        group = _group_of(self.sparsifier.optimizer, layer.values)
        group["params"] = [p for p in group["params"] if p is not layer.values]
        if layer.values in state:
            state[weight] = {
                key: _spread(layer, value) if _like(value, layer.values) else value
                for key, value in state.pop(layer.values).items()
            }


def _spread(layer: SparseLinear, values: Tensor) -> Tensor:
    """Packed values as a dense tensor of the weight's shape."""
    dense = torch.zeros(layer.out_features, layer.in_features)
    return scatter_(layer.pattern, values, dense).view_as(layer.weight)


def _like(value: object, parameter: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == parameter.shape


def _group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict:
    return next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))


class Swap:
    """One module put in the place of another."""

    def __init__(self, model: nn.Module, path: str, new: nn.Module) -> None:
        parent, _, self.leaf = path.rpartition(".")
        self.holder = model.get_submodule(parent)
        self.old = getattr(self.holder, self.leaf)
        setattr(self.holder, self.leaf, new.train(self.old.training))

    def undo(self) -> None:
        """Put the old module back, in the present mode."""
        setattr(self.holder, self.leaf, self.old.train(getattr(self.holder, self.leaf).training))
