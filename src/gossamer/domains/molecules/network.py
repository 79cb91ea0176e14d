"""SPHNet: a rotation-equivariant network for Hamiltonians whose tensor products and pairs are sparse."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError

from .basis import Layout
from .blocks import RADIAL, GatedProduct, LayerNorm, Mix, NormGate, PathWeights, Radial, inner, perceptron
from .expansion import Expansion
from .graph import Blocks, Graph, from_blocks, graph
from .irreps import degrees, harmonics, triples, width
from .pairs import PairGate
from .product import PathProduct, normalisation
from .scf import Molecule


@dataclass(frozen=True)
class Shape:
    """Sizes and gates of a network.

    Defaults are small; the paper's are lmax 4 (def2-svp) or 6 (def2-tzvp), 128 channels, 2 pair layers, sparsity .7.

    Args:
        lmax: degrees of the features. channels: of every degree. layers: of pair construction.
        sparsity: share of tensor-product paths left out. pair_sparsity: share of pairs left out.
        choice: of paths, see `PathGate`. threshold: of pairs, see `PairGate`.
    """

    lmax: int = 4
    channels: int = 8
    layers: int = 1
    sparsity: float = 0.7
    pair_sparsity: float = 0.0
    choice: str = "adaptive"
    threshold: str = "running"
    seed: int = 0


class Lift(nn.Module):
    """First convolution: scalars of the neighbours times harmonics of the direction, for every degree."""

    degree: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.weights = PathWeights(2 * channels, lmax + 1, channels)
        self.register_buffer("degree", degrees(lmax), persistent=False)

    def forward(self, s: Tensor, edges: Tensor, rbf: Tensor, directions: Tensor) -> Tensor:
        i, j = edges
        w = self.weights(rbf, torch.cat([s[i], s[j]], 1)).transpose(1, 2)[..., self.degree]
        return gather_sum(w * s[j][..., None] * directions[:, None], i, len(s))


def gather_sum(messages: Tensor, at: Tensor, count: int) -> Tensor:
    """Sums of the messages that arrive at each of `count` atoms."""
    return messages.new_zeros(count, *messages.shape[1:]).index_add(0, at, messages)


class Convolution(nn.Module):
    """Second convolution: product of the neighbour's feature and the direction, over the pairs that the gate keeps."""

    degree: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        paths = triples(shape.lmax)
        scalars = pair_scalars(shape)
        self.gate = PairGate(scalars, shape.pair_sparsity, shape.threshold)
        self.weights = PathWeights(scalars, len(paths), shape.channels)
        self.product = PathProduct(paths, shape.lmax, shape.lmax, normalisation(paths))
        self.norm, self.mix = LayerNorm(shape.lmax), Mix(shape.lmax, shape.channels, shape.channels)
        self.register_buffer("degree", degrees(shape.lmax), persistent=False)

    def forward(self, x: Tensor, edges: Tensor, rbf: Tensor, directions: Tensor) -> Tensor:
        i, j = edges
        kept, s0 = self.gate(features_of_pairs(x, edges, self.degree))
        messages = self.product(x[j[kept]], directions[kept, None], self.weights(rbf[kept], s0))
        mixed: Tensor = self.mix(self.norm(gather_sum(messages, i[kept], len(x))))
        return x + mixed


def pair_scalars(shape: Shape) -> int:
    """Features of `features_of_pairs`."""
    return shape.channels * (shape.lmax + 3)


def features_of_pairs(x: Tensor, edges: Tensor, degree: Tensor) -> Tensor:
    """(pairs, features) scalars of both ends and their inner products of every degree."""
    i, j = edges
    return torch.cat([x[i, :, 0], x[j, :, 0], inner(x[i], x[j], degree).flatten(1)], 1)


class PairLayer(nn.Module):
    """Products of every atom with itself and with its partners; dropped pairs keep what they had."""

    def __init__(self, shape: Shape, number: int, pair_sparsity: float) -> None:
        super().__init__()
        lmax, channels, scalars = shape.lmax, shape.channels, pair_scalars(shape)
        seeds = (shape.seed * 100 + 2 * number, shape.seed * 100 + 2 * number + 1)
        self.before, self.after = NormGate(lmax, channels), NormGate(lmax, channels)
        self.own = GatedProduct(lmax, channels, scalars, shape.sparsity, shape.choice, seeds[0])
        self.between = GatedProduct(lmax, channels, scalars, shape.sparsity, shape.choice, seeds[1])
        self.own_mix, self.pair_mix = Mix(lmax, channels, channels), Mix(lmax, channels, channels)
        self.gate = PairGate(scalars, pair_sparsity, shape.threshold)

    def forward(self, x: Tensor, edges: Tensor, rbf: Tensor, s0: Tensor, own: Tensor, pair: Tensor) -> tuple:
        y = self.before(x)
        alone = torch.cat([x[..., 0], x[..., 0], s0.new_zeros(len(x), s0.shape[1] - 2 * x.shape[1])], 1)
        own = own + self.own_mix(self.after(self.own(y, y, rbf.new_zeros(len(x), RADIAL), alone)))
        kept, scaled = self.gate(s0)
        i, j = edges[:, kept]
        found = self.pair_mix(self.after(self.between(y[i], y[j], rbf[kept], scaled)))
        return own, pair.index_add(0, kept, found)


class SPHNet(nn.Module):
    """Predicts the correction of a Fock matrix to its initial guess, in hartree.

    The authors' front end (ViSNet with long-range messages) is replaced by a few scalar messages; the tensor-product
    parts, which are what is made sparse, are those of the paper. Both orders of a pair are computed and averaged, so
    that the result does not depend on the order of the atoms.

    Args:
        layout: basis and elements. shape: sizes and gates.
    Raises:
        ConfigError: lmax below twice the highest shell, sparsity outside [0, 1), unknown choices.
    """

    degree: Tensor

    def __init__(self, layout: Layout, shape: Shape = Shape()) -> None:
        super().__init__()
        if shape.channels < 1 or shape.layers < 1:
            raise ConfigError(f"channels={shape.channels}, layers={shape.layers}: both start at 1")
        self.layout, self.shape = layout, shape
        c, lmax = shape.channels, shape.lmax
        self.element = nn.Embedding(len(layout.elements), c)
        self.near, self.far = Radial(15.0), Radial(30.0)
        self.scalar_weights = nn.ModuleList(PathWeights(2 * c, 1, c) for _ in range(2))
        self.scalar_updates = nn.ModuleList(perceptron(c, c) for _ in range(2))
        self.lift, self.convolution = Lift(lmax, c), Convolution(shape)
        self.layers = nn.ModuleList(
            PairLayer(shape, n, shape.pair_sparsity if n == shape.layers - 1 else 0.0) for n in range(shape.layers)
        )
        self.expand_own = Expansion(layout.template, lmax, c, c)
        self.expand_pair = Expansion(layout.template, lmax, c, pair_scalars(shape) + RADIAL)
        self.register_buffer("degree", degrees(lmax), persistent=False)

    def forward(self, batch: Graph) -> Blocks:
        """Symmetric blocks, as `graph.to_blocks` lays them out."""
        i, j = batch.edges
        vectors = batch.positions[j] - batch.positions[i]
        distance = vectors.norm(dim=1)
        near, far = self.near(distance), self.far(distance)
        directions = harmonics(vectors, self.shape.lmax)
        s = self.element(batch.kinds)
        for weights, update in zip(self.scalar_weights, self.scalar_updates, strict=True):
            message = weights(near, torch.cat([s[i], s[j]], 1))[:, 0] * s[j]
            s = s + update(gather_sum(message, i, len(s)))
        x = self.lift(s, batch.edges, near, directions)
        x = torch.cat([x[..., :1] + s[..., None], x[..., 1:]], -1)
        x = self.convolution(x, batch.edges, near, directions)
        s0 = features_of_pairs(x, batch.edges, self.degree)
        own, pair = x, x.new_zeros(len(i), self.shape.channels, width(self.shape.lmax))
        for layer in self.layers:
            own, pair = layer(x, batch.edges, far, s0, own, pair)
        diagonal = self.expand_own(own, s)
        blocks = self.expand_pair(pair, torch.cat([s0, far], 1))
        other = blocks[reverse(batch)].transpose(1, 2)
        return Blocks((diagonal + diagonal.transpose(1, 2)) / 2, (blocks + other) / 2)

    def freeze(self) -> SPHNet:
        """A copy with plain products of the kept paths alone. Raises ConfigError in the random phase."""
        small = copy.deepcopy(self)
        for module in list(small.modules()):
            if isinstance(module, GatedProduct):
                module.freeze()
        return small

    @torch.no_grad()
    def predict(self, molecules: Sequence[Molecule]) -> list[np.ndarray]:
        """The corrections in PySCF's order, float64, in evaluation mode."""
        training = self.training
        self.eval()
        weight = self.element.weight
        batch = graph(molecules, self.layout, weight.dtype)
        found = from_blocks(self(batch), molecules, self.layout)
        self.train(training)
        return found

    def settings(self) -> dict[str, object]:
        """What builds an equal network: basis, elements, shape."""
        return {"basis": self.layout.basis, "elements": list(self.layout.elements), "shape": asdict(self.shape)}


def reverse(batch: Graph) -> Tensor:
    """(pairs,) position of the pair (j, i) for every pair (i, j)."""
    i, j = batch.edges
    count = len(batch.kinds)
    where = torch.empty(count * count, dtype=torch.long, device=i.device)
    where[i * count + j] = torch.arange(len(i), device=i.device)
    return where[j * count + i]
