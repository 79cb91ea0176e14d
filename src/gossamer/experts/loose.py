"""Feed-forward networks whose layers lie loose in a block, as in BERT, OPT, BART or Whisper: found, and gathered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# first layer, activation, last layer, by their names inside of a block
_LOOSE = (
    ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    ("fc1", "activation_fn", "fc2"),
    ("ffn", "activation", "ffn_output"),
)


class Gathered(nn.Sequential):
    """Linear, activation, Linear that lay loose in a block, as one module in the place of the first of them."""


class Act(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """function(x)."""
        return self.function(x)


def loose(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Name of the first layer of every loose network -> names of its activation and of its last layer.

    A block with a norm over the hidden units, between activation and last layer, is left out.
    """
    found = {}
    for name, block in model.named_modules():
        for parts in _LOOSE:
            up, act, down = (_get(block, part) for part in parts)
            if not (isinstance(up, nn.Linear) and isinstance(down, nn.Linear) and callable(act)):
                continue
            hidden, width = up.weight.shape
            sizes = {child.weight.shape for _, child in block.named_children() if _is_norm(child)}
            own = {child for child, _ in block.named_children()} <= set(parts)  # a network that is a module already
            if down.weight.shape == (width, hidden) and not own and (hidden == width or (hidden,) not in sizes):
                first, second, third = (f"{name}.{part}".lstrip(".") for part in parts)
                found[first] = (second, third)
    return found


def gather(model: nn.Module, names: Iterable[str]) -> None:
    """Make one module, at the place of its first layer, of each of these networks that lies loose; in place.

    The model computes what it did: where activation and last layer were, nothing happens any more. Dropout that was
    between them then follows them.
    """
    places = loose(model)
    for name in names:
        if name in places:
            act, down = places[name]
            function = _get(model, act)
            function = function if isinstance(function, nn.Module) else Act(function)  # type: ignore[arg-type]
            parts = {"fc1": model.get_submodule(name), "act": function, "fc2": model.get_submodule(down)}
            made = Gathered(OrderedDict(parts))
            _set(model, name, made.train(model.get_submodule(name).training))
            _set(model, act, nn.Identity())
            _set(model, down, nn.Identity())


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1


def _get(module: nn.Module, path: str) -> object | None:
    found: object | None = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _set(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
