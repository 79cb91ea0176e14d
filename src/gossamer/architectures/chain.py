"""The small search space of DASS's reproduction: a perceptron whose edges in series choose their operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..errors import ConfigError, unknown
from .scored_layers import make_sparse
from .slots import OneOf
from .space import Architecture, SearchSpace


class Grouped(nn.Module):
    """A linear map inside each of `groups` equal parts of the features."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        if width % groups:
            raise ConfigError(f"{groups} groups do not divide {width} features")
        self.parts = nn.ModuleList(nn.Linear(width // groups, width // groups, bias=False) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.chunk(len(self.parts), 1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], 1)


def _through(width: int, inner: int, affine: bool) -> nn.Module:
    """Width to inner to width, normalised and rectified twice."""
    return nn.Sequential(
        nn.Linear(width, inner, bias=False), nn.BatchNorm1d(inner, affine=affine), nn.ReLU(),
        nn.Linear(inner, width, bias=False), nn.BatchNorm1d(width, affine=affine), nn.ReLU(),
    )  # fmt: skip


def _single(layer: nn.Module, width: int, affine: bool) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm1d(width, affine=affine), nn.ReLU())


OPERATIONS: dict[str, Callable[[int, bool], nn.Module]] = {
    "skip": lambda w, affine: nn.Identity(),
    "grouped": lambda w, affine: _single(Grouped(w, 8), w, affine),
    "bottleneck": lambda w, affine: _through(w, w // 6, affine),
    "linear": lambda w, affine: _single(nn.Linear(w, w, bias=False), w, affine),
    "wide": lambda w, affine: _through(w, 4 * w, affine),
}


def chain_space(edges: int = 3, operations: Sequence[str] = tuple(OPERATIONS)) -> SearchSpace:
    """One operation for each of `edges` edges in series. Raises ConfigError for an unknown operation."""
    for name in operations:
        if name not in OPERATIONS:
            raise unknown("operation", name, OPERATIONS)
    return SearchSpace(tuple(OneOf(f"edge {i}", tuple(operations)) for i in range(edges)), name="the space of chains")


def _stem(shape: Sequence[int], width: int, affine: bool) -> nn.Module:
    inputs = prod(shape)
    linear = nn.Linear(inputs, width, bias=False)
    return nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(width, affine=affine), nn.ReLU())


class ChainSuperNet(nn.Module):
    """All operations of every edge, weighted by softmax(alpha), with sparse layers."""

    def __init__(
        self, *, shape: Sequence[int] = (1, 8, 8), classes: int = 10, width: int = 48, edges: int = 3,
        operations: Sequence[str] = tuple(OPERATIONS),
    ) -> None:  # fmt: skip
        super().__init__()
        self.space = chain_space(edges, operations)
        self.stem = _stem(shape, width, affine=False)
        self.edges = nn.ModuleList(
            nn.ModuleList(OPERATIONS[name](width, False) for name in operations) for _ in range(edges)
        )
        self.head = nn.Linear(width, classes)
        make_sparse(self)
        self.alphas = nn.ParameterList([nn.Parameter(1e-3 * torch.randn(edges, len(operations)))])

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        rows = self.alphas[0].softmax(-1)
        for index, operations in enumerate(self.edges):
            h = sum(rows[index, place] * op(h) for place, op in enumerate(operations.children()))
        out: Tensor = self.head(h)
        return out

    def architecture(self) -> Architecture:
        """The operations that weigh most."""
        return tuple(self.alphas[0].detach().argmax(-1).tolist())


class ChainNet(nn.Sequential):
    """The network of one architecture of `chain_space`."""

    def __init__(
        self, architecture: Architecture, *, shape: Sequence[int] = (1, 8, 8), classes: int = 10, width: int = 48,
        operations: Sequence[str] = tuple(OPERATIONS),
    ) -> None:  # fmt: skip
        chosen = [OPERATIONS[operations[int(i)]](width, True) for i in architecture]  # type: ignore[arg-type]
        super().__init__(_stem(shape, width, True), *chosen, nn.Linear(width, classes))
