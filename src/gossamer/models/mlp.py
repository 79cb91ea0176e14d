"""Multi-layer perceptrons and LeNets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from gossamer.errors import ConfigError


def mlp(
    *,
    shape: Sequence[int] = (1, 12, 12),
    classes: int = 10,
    hidden: Sequence[int] = (300, 100),
    norm: bool = True,
) -> nn.Sequential:
    """A perceptron with ReLU: prod(shape) - hidden... - classes; layers are named fc1, fc2, ..., head.

    Args:
        shape: of one input, flattened; the default is the 12x12 canvas of the shifted digits (144 inputs).
        classes: outputs.
        hidden: widths of the hidden layers; (w, w) gives the width sweep of random pruning's reproduction.
        norm: batch normalisation after each hidden layer, which then has no bias; else only a bias.
    Returns:
        a module (B, *shape) -> (B, classes).
    Raises:
        ConfigError: a width below 1.
    """
    widths = [prod(shape), *hidden, classes]
    if min(widths) < 1:
        raise ConfigError(f"widths of an MLP must be >= 1, got {widths}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, (inputs, outputs) in enumerate(pairwise(widths[:-1]), start=1):
        layers[f"fc{index}"] = nn.Linear(inputs, outputs, bias=not norm)
        if norm:
            layers[f"bn{index}"] = nn.BatchNorm1d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
    layers["head"] = nn.Linear(widths[-2], classes)
    return nn.Sequential(layers)
