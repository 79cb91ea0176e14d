"""From features to matrix blocks: sums of Clebsch-Gordan matrices (SPHNet, section 3.1, step 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError

from .blocks import perceptron
from .irreps import block, three_j


def expansion_matrices(template: Sequence[int]) -> tuple[list[tuple[int, int, int]], Tensor]:
    """All ways a component of a feature enters a block.

    Returns:
        entries (shell a, shell b, l), and the orthonormal matrices (sum of 2 l + 1, size, size), float64.
    """
    starts = [sum(2 * l + 1 for l in template[:a]) for a in range(len(template) + 1)]  # noqa: E741
    entries, matrices = [], []
    for a, first in enumerate(template):
        for b, second in enumerate(template):
            for l in range(abs(first - second), first + second + 1):  # noqa: E741
                whole = torch.zeros(2 * l + 1, starts[-1], starts[-1], dtype=torch.float64)
                symbol = three_j(first, second, l).permute(2, 0, 1) * math.sqrt(2 * l + 1)
                whole[:, starts[a] : starts[a + 1], starts[b] : starts[b + 1]] = symbol
                entries.append((a, b, l))
                matrices.append(whole)
    return entries, torch.cat(matrices)


class Expansion(nn.Module):
    """block = sum over (a, b, l) of CG(l_a, l_b, l) [sum over channels of w z^l, plus a bias for l = 0].

    Args:
        template: degrees of an atom's shells. lmax: of the features; twice the highest shell at least.
        channels: of the features. scalars: features that the weights w are made of.
    Raises:
        ConfigError: lmax is too small for the template.
    """

    matrices: Tensor

    def __init__(self, template: Sequence[int], lmax: int, channels: int, scalars: int) -> None:
        super().__init__()
        if lmax < 2 * max(template):
            raise ConfigError(f"lmax={lmax} is too small: shells of degree {max(template)} need {2 * max(template)}")
        entries, matrices = expansion_matrices(template)
        self.channels = channels
        order = sorted(range(len(entries)), key=lambda i: entries[i][2])  # by degree, as features lie
        starts = [sum(2 * e[2] + 1 for e in entries[:i]) for i in range(len(entries))]
        rows = [starts[i] + m for i in order for m in range(2 * entries[i][2] + 1)]
        self.counts = [sum(e[2] == l for e in entries) for l in range(lmax + 1)]  # noqa: E741
        self.register_buffer("matrices", matrices[rows].to(torch.get_default_dtype()), persistent=False)
        self.weights = perceptron(scalars, len(entries) * channels)
        self.bias = perceptron(scalars, self.counts[0])

    def forward(self, z: Tensor, scalars: Tensor) -> Tensor:
        """z (n, channels, width), scalars (n, features) -> (n, size, size)."""
        weights = self.weights(scalars).unflatten(1, (-1, self.channels)).split(self.counts, 1)
        parts = [
            torch.einsum("npu,num->npm", w, z[..., block(l)]).flatten(1)
            for l, w in enumerate(weights)  # noqa: E741
        ]
        parts[0] = parts[0] + self.bias(scalars)
        return torch.tensordot(torch.cat(parts, 1) / math.sqrt(self.channels), self.matrices, 1)
