"""Edges as PyTorch Geometric holds them, checked, and which two entries are one undirected edge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import DataError, ShapeError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_edges(edge_index: Tensor, num_nodes: int | None = None) -> tuple[Tensor, int]:
    """`edge_index` as int64 and the number of nodes.

    Args:
        edge_index: (2, E) integers: sources above, targets below.
        num_nodes: nodes of the graph; None takes the largest index plus one.
    Raises:
        ShapeError: not (2, E). DataError: not integers, no edge, or an index outside 0..num_nodes-1.
    """
    if not isinstance(edge_index, Tensor) or edge_index.ndim != 2 or edge_index.shape[0] != 2:
        shape = tuple(edge_index.shape) if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise ShapeError(f"edge_index must be a (2, E) tensor, got {shape}; transpose a list of (source, target) rows")
    if edge_index.dtype not in _INTEGERS:
        raise DataError(f"edge_index must hold integers, got {edge_index.dtype}; call .long() on whole numbers")
    if not edge_index.shape[1]:
        raise DataError("the graph has no edge; there is nothing to score or cut")
    edge_index = edge_index.long()
    low, high = int(edge_index.min()), int(edge_index.max())
    count = high + 1 if num_nodes is None else int(num_nodes)
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise DataError(f"edge_index holds node {wrong}, but nodes are 0..{count - 1}; renumber, or pass num_nodes")
    return edge_index, count


def coalesce(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The edges without repetitions, sorted by source and target; warns where some were repeated."""
    keys = torch.unique(edge_index[0] * num_nodes + edge_index[1])
    if len(keys) < edge_index.shape[1]:
        warnings.warn(f"{edge_index.shape[1] - len(keys)} repeated edges were merged", UserWarning, stacklevel=3)
    return torch.stack([keys // num_nodes, keys % num_nodes])


def is_undirected(edge_index: Tensor, num_nodes: int) -> bool:
    """Whether every entry (i, j) has its partner (j, i)."""
    ahead = torch.unique(edge_index[0] * num_nodes + edge_index[1])
    back = torch.unique(edge_index[1] * num_nodes + edge_index[0])
    return torch.equal(ahead, back)


def undirect(edge_index: Tensor, num_nodes: int | None = None) -> Tensor:
    """Both directions of every edge, once each, sorted by source and target.

    >>> undirect(torch.tensor([[0, 1], [1, 2]]))
    tensor([[0, 1, 1, 2],
            [1, 0, 2, 1]])
    """
    edge_index, count = check_edges(edge_index, num_nodes)
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    keys = torch.unique(both[0] * count + both[1])
    return torch.stack([keys // count, keys % count])


@dataclass(frozen=True)
class Pairs:
    """Which entries make one undirected edge.

    Args:
        of_entry: (E,) index of the undirected edge of each entry.
        first: (pairs,) an entry of each undirected edge.
        size: (pairs,) entries of each: 2, or 1 for a self loop.
    """

    of_entry: Tensor
    first: Tensor
    size: Tensor

    @property
    def count(self) -> int:
        """Number of undirected edges."""
        return len(self.first)


def pair_up(edge_index: Tensor, num_nodes: int, *, undirected: bool = True) -> Pairs:
    """The undirected edges of a graph whose entries are given in both directions.

    Args:
        undirected: False makes each entry a unit of its own.
    Raises:
        DataError: the graph is directed, or holds an edge twice.
    """
    entries = edge_index.shape[1]
    if not undirected:
        own = torch.arange(entries, device=edge_index.device)
        return Pairs(own, own, torch.ones_like(own))
    if len(torch.unique(edge_index[0] * num_nodes + edge_index[1])) < entries:
        raise DataError("edge_index holds an edge twice; pass it through gossamer.domains.graphs.coalesce first")
    if not is_undirected(edge_index, num_nodes):
        raise DataError(
            "the graph is directed: some edge (i, j) lacks its partner (j, i). "
            "Pass gossamer.domains.graphs.undirect(edge_index), or undirected=False to cut entries one by one"
        )
    low, high = edge_index.min(0).values, edge_index.max(0).values
    keys, of_entry, size = torch.unique(low * num_nodes + high, return_inverse=True, return_counts=True)
    first = torch.full((len(keys),), entries, device=edge_index.device)
    first.scatter_reduce_(0, of_entry, torch.arange(entries, device=edge_index.device), "amin")
    return Pairs(of_entry, first, size)
