"""Gradients of single samples, as rows of a matrix over all trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ...errors import ConfigError

LossOf = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> mean loss
_ENTRIES = 1 << 25  # of gradients that are held at once: 128 MiB in float32


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every module's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name. Raises ConfigError where one is frozen, as its gradient would be missing."""
    named = dict(model.named_parameters())
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    if frozen or not named:
        what = f"{frozen[0]} and {len(frozen) - 1} others have no gradient" if frozen else "the model has no parameters"
        raise ConfigError(f"{what}; this method edits all parameters by their gradients: model.requires_grad_(True)")
    return named


def block_size(parameters: Mapping[str, Tensor], entries: int = _ENTRIES) -> int:
    """How many samples' gradients fit in a block of so many entries."""
    return max(1, entries // sum(p.numel() for p in parameters.values()))


def sample_gradients(model: nn.Module, inputs: Tensor, targets: Tensor, loss: LossOf = F.cross_entropy) -> Tensor:
    """Gradient of each sample's loss: (n, d), d entries of all parameters in their order.

    The model is taken as it stands; evaluation mode makes samples independent. Vectorised where torch.func can, else
    one sample after the other.
    """
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    buffers = dict(model.named_buffers())

    def of_one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, (values, buffers), (x[None],)), y[None])

    try:
        rows = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="same")(parameters, inputs, targets)
    except RuntimeError:  # an operation that cannot be vectorised
        found = [grad(of_one)(parameters, x, y) for x, y in zip(inputs, targets, strict=True)]
        rows = {name: torch.stack([row[name] for row in found]) for name in parameters}
    return torch.cat([rows[name].flatten(1) for name in parameters], dim=1)


def split_vector(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector over all parameters as tensors by name."""
    pieces = vector.split([p.numel() for p in like.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(like.items(), pieces, strict=True)}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """The inverse of `split_vector`."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
