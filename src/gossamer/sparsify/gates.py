"""Gates: masks over things that are no weights (edges, nodes, neuron states, tensor-product paths)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """A learnable factor per unit, selected, scored and masked like any weight.

    Args:
        shape: of the units, for instance (edges,) or (heads,).
        init: initial factor.
        learn: whether the factor is trained; a fixed gate only switches.
    """

    def __init__(self, *shape: int, init: float = 1.0, learn: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, init), requires_grad=learn)

    def forward(self, x: Tensor) -> Tensor:
        """x times the gate, which broadcasts from the right."""
        return x * self.weight
