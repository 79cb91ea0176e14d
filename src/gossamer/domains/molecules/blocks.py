"""The parts of the Hamiltonian network: mixing, gates, radial functions, weights of paths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .irreps import degrees
from .product import PathProduct, SparseTensorProduct

RADIAL = 16


class Radial(nn.Module):
    """Exponential Bernstein polynomials of a distance, with a smooth cutoff (PhysNet, SpookyNet; 16 functions)."""

    binomials: Tensor

    def __init__(self, cutoff: float, count: int = RADIAL, decay: float = 0.5) -> None:
        super().__init__()
        self.cutoff, self.decay = cutoff, decay
        binomials = [math.log(math.comb(count - 1, k)) for k in range(count)]
        self.register_buffer("binomials", torch.tensor(binomials))

    def forward(self, distance: Tensor) -> Tensor:
        """(edges,) in angstrom -> (edges, 16)."""
        k = torch.arange(len(self.binomials), device=distance.device, dtype=distance.dtype)
        log = -self.decay * distance[:, None]
        rest = torch.log(-torch.expm1(log))
        values = torch.exp(self.binomials + k * log + (len(k) - 1 - k) * rest)
        inside = (distance / self.cutoff).square().clamp(max=0.999999)
        smooth = torch.where(distance < self.cutoff, torch.exp(-inside / (1 - inside)), 0.0)
        return values * smooth[:, None]


class Mix(nn.Module):
    """A linear map of the channels, one for every degree; the scalars get a bias."""

    degree: Tensor

    def __init__(self, lmax: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(lmax + 1, outputs, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("degree", degrees(lmax), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.einsum("svu,nus->nvs", self.weight[self.degree], x)
        return torch.cat([out[..., :1] + self.bias[:, None], out[..., 1:]], -1)


class NormGate(nn.Module):
    """Scalars pass a perceptron of scalars and norms; every other degree is scaled by a sigmoid of the same."""

    degree: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.lmax, self.channels = lmax, channels
        self.net = perceptron(channels * (lmax + 1), channels * (lmax + 1))
        self.register_buffer("degree", degrees(lmax), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(norms(x, self.degree).flatten(1)).unflatten(1, (self.channels, self.lmax + 1))
        gates = torch.sigmoid(found[..., 1:])[..., self.degree[1:] - 1]
        return torch.cat([F.silu(found[..., :1]) + x[..., :1], x[..., 1:] * gates], -1)


def norms(x: Tensor, degree: Tensor) -> Tensor:
    """(n, channels, lmax + 1): the scalars, and the root mean square of each other degree."""
    squares = inner(x, x, degree)[..., 1:]
    return torch.cat([x[..., :1], (squares + 1e-6).sqrt()], -1)


def inner(x: Tensor, y: Tensor, degree: Tensor) -> Tensor:
    """(n, channels, lmax + 1) mean product of the components of each degree."""
    member = F.one_hot(degree).to(x.dtype)
    return (x * y) @ (member / member.sum(0))


class LayerNorm(nn.Module):
    """Divides every degree by its root mean square over channels and components: equivariant."""

    degree: Tensor

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.register_buffer("degree", degrees(lmax), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        size = (inner(x, x, self.degree).mean(1, keepdim=True) + 1e-3).sqrt()
        return x / size[..., self.degree]


def perceptron(inputs: int, outputs: int, hidden: int = 32) -> nn.Sequential:
    """Two layers with SiLU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class PathWeights(nn.Module):
    """Weights of the paths for every pair: a perceptron of the distance times one of the pair's scalars.

    Only the rows of kept paths are computed, so that a dropped path costs nothing and gets no gradient.
    """

    def __init__(self, scalars: int, paths: int, channels: int) -> None:
        super().__init__()
        self.paths, self.channels = paths, channels
        self.radial = perceptron(RADIAL, paths * channels)
        self.scalar = perceptron(scalars, paths * channels)

    def forward(self, rbf: Tensor, scalars: Tensor, kept: Tensor | None = None) -> Tensor:
        """rbf (n, 16), scalars (n, features) -> (n, kept paths, channels)."""
        return self._rows(self.radial, rbf, kept) * (1 + self._rows(self.scalar, scalars, kept))

    def _rows(self, net: nn.Sequential, x: Tensor, kept: Tensor | None) -> Tensor:
        last: Any = net[2]
        weight, bias = last.weight.unflatten(0, (self.paths, -1)), last.bias.unflatten(0, (self.paths, -1))
        if kept is not None:
            weight, bias = weight[kept], bias[kept]
        hidden = net[1](net[0](x))
        return F.linear(hidden, weight.flatten(0, 1), bias.flatten()).unflatten(1, (-1, self.channels))

    def narrow(self, kept: Tensor) -> None:
        """Forget the weights of all other paths."""
        rows = (kept[:, None] * self.channels + torch.arange(self.channels, device=kept.device)).flatten()
        for net in (self.radial, self.scalar):
            last: Any = net[2]
            smaller = nn.Linear(last.in_features, len(rows)).to(last.weight)
            smaller.weight.data, smaller.bias.data = last.weight.data[rows], last.bias.data[rows]
            net[2] = smaller
        self.paths = len(kept)


class GatedProduct(nn.Module):
    """A product of two features whose path weights come from the pair's scalars and distance."""

    product: SparseTensorProduct | PathProduct

    def __init__(self, lmax: int, channels: int, scalars: int, sparsity: float, choice: str, seed: int) -> None:
        super().__init__()
        self.product = SparseTensorProduct(lmax, None, sparsity, choice, seed)
        self.weights = PathWeights(scalars, len(self.product.paths), channels)

    def forward(self, x: Tensor, y: Tensor, rbf: Tensor, scalars: Tensor) -> Tensor:
        kept = self.product.gate.indices() if isinstance(self.product, SparseTensorProduct) else None
        out: Tensor = self.product(x, y, self.weights(rbf, scalars, kept))
        return out

    def freeze(self) -> None:
        """Become plain and small. Raises ConfigError in the random phase."""
        if isinstance(self.product, SparseTensorProduct):
            kept = self.product.gate.indices()
            self.product = self.product.freeze()
            self.weights.narrow(kept)
