"""Cutting edges: by a score to an exact count, undirected edges as a whole."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, MaskError, ShapeError
from ...kernels.topk import topk_mask
from .edges import check_edges, pair_up
from .edges import undirect as both_directions
from .scores import edge_score


def check_ratio(name: str, ratio: float) -> float:
    """`ratio`, checked to lie in [0, 1)."""
    if not 0 <= ratio < 1:  # NaN fails too
        raise ConfigError(f"{name} must lie in [0, 1), got {ratio}; it is the share that is cut")
    return float(ratio)


def ladder(step: float, rung: int) -> float:
    """Share that is cut after `rung` rounds that each cut `step` of the rest: 1 - (1 - step)^rung.

    >>> round(ladder(0.05, 20), 4)
    0.6415
    """
    check_ratio("step", step)
    if rung < 0:
        raise ConfigError(f"rung must not be negative, got {rung}")
    return 1 - (1 - step) ** rung


def prune_edges(
    edge_index: Tensor,
    score: Tensor,
    ratio: float,
    *,
    num_nodes: int | None = None,
    undirected: bool = True,
    protect_self_loops: bool = True,
) -> Tensor:
    """Which entries stay when the share `ratio` with the lowest scores is cut.

    Undirected edges are cut as a whole, floor(ratio * edges) of them; the mean score of both entries decides. A larger
    ratio cuts a superset. Ties: the edge that comes first stays.

    Args:
        edge_index: (2, E). score: (E,), larger means keep.
        ratio: in [0, 1), of the edges that are no protected self loops.
        undirected: False cuts entries one by one, as the authors' code does, and may leave one direction of an edge.
        protect_self_loops: keep them whatever their score.
    Returns:
        (E,) bool, True = kept.
    Raises:
        ConfigError: a ratio outside [0, 1). ShapeError: scores of another length. NumericsError: a NaN score.
        DataError: as `check_edges`; a directed graph or repeated edges where `undirected`.
    """
    check_ratio("ratio", ratio)
    edge_index, count = check_edges(edge_index, num_nodes)
    if score.shape != edge_index.shape[1:]:
        raise ShapeError(f"score has shape {tuple(score.shape)}, but there are {edge_index.shape[1]} edges")
    pairs = pair_up(edge_index, count, undirected=undirected)
    value = torch.zeros(pairs.count, dtype=torch.float64, device=score.device)
    value.index_add_(0, pairs.of_entry, score.detach().double())
    value /= pairs.size
    free = torch.ones_like(value, dtype=torch.bool)
    if protect_self_loops:
        free &= (edge_index[0] != edge_index[1])[pairs.first]
    kept = ~free
    total = int(free.sum())
    kept[free] = topk_mask(value[free], total - math.floor(ratio * total + 1e-9), name="edge scores")
    return kept[pairs.of_entry]


def sparsify_edges(
    graph: Any,
    keep: float = 0.36,
    *,
    score: str = "teddy",
    undirected: bool = True,
    num_nodes: int | None = None,
    seed: int = 0,
) -> Any:
    """The graph with the share `keep` of its edges.

    Args:
        graph: edge_index (2, E), or a PyTorch Geometric `Data` (anything with `edge_index`), which is copied; its
            attributes that have one row per edge (edge_attr, edge_weight, ...) are cut alike.
        keep: in (0, 1]. 0.36 is what the published ladder ends at.
        score: a name of `EDGE_SCORES`. seed: of random scores.
        undirected: False takes a directed graph: degrees count both directions, entries are cut one by one.
    Returns:
        of the type of `graph`.
    Raises:
        ConfigError: `keep` outside (0, 1] or an unknown score. MaskError: every edge would be cut.
        ShapeError, DataError: as `prune_edges`.

    >>> sparsify_edges(torch.tensor([[0, 1, 1, 2, 1, 3], [1, 0, 2, 1, 3, 1]]), keep=0.4)
    tensor([[0, 1, 1, 2],
            [1, 0, 2, 1]])
    """
    edge_index = getattr(graph, "edge_index", graph)
    if num_nodes is None and edge_index is not graph:
        num_nodes = graph.num_nodes
    kept = kept_edges(edge_index, keep, score=score, undirected=undirected, num_nodes=num_nodes, seed=seed)
    if edge_index is graph:
        return edge_index[:, kept]
    result = copy.copy(graph)
    for name in _edge_attributes(graph):
        value = getattr(graph, name)
        setattr(result, name, value[:, kept] if name == "edge_index" else value[kept])
    return result


def kept_edges(
    edge_index: Tensor,
    keep: float,
    *,
    score: str = "teddy",
    undirected: bool = True,
    num_nodes: int | None = None,
    seed: int = 0,
) -> Tensor:
    """(E,) bool: the entries that `sparsify_edges` keeps. Arguments and errors as there."""
    if not 0 < keep <= 1:
        raise ConfigError(f"keep must lie in (0, 1], got {keep}; it is the share of edges that stays")
    edge_index, count = check_edges(edge_index, num_nodes)
    value = edge_score(score, edge_index, count, seed=seed) if undirected else _directed(edge_index, count, score, seed)
    # 1 - 0.36 is a little more than 0.64; the ratio that was meant decides the count
    ratio = min(round(1 - keep, 12), 1 - 1e-12)
    kept = prune_edges(edge_index, value, ratio, num_nodes=count, undirected=undirected)
    if not kept.any():
        raise MaskError(f"keep={keep} leaves none of the {edge_index.shape[1]} edges; raise it")
    left = torch.bincount(edge_index[:, kept].flatten(), minlength=count)
    lost = int(((left == 0) & (torch.bincount(edge_index.flatten(), minlength=count) > 0)).sum())
    if lost > 0.5 * count:
        warnings.warn(f"{lost} of {count} nodes lost all their edges; raise keep", UserWarning, stacklevel=3)
    return kept


def _directed(edge_index: Tensor, count: int, score: str, seed: int) -> Tensor:
    """Scores on the graph with both directions, looked up for the entries that there are."""
    both = both_directions(edge_index, count)
    value = edge_score(score, both, count, seed=seed)
    place = torch.searchsorted(both[0] * count + both[1], edge_index[0] * count + edge_index[1])
    return value[place]


def _edge_attributes(graph: Any) -> list[str]:
    if hasattr(graph, "is_edge_attr"):  # torch_geometric.data.Data
        return [name for name in graph.keys() if graph.is_edge_attr(name)]  # noqa: SIM118 - a method of Data
    return ["edge_index"]


@dataclass(frozen=True)
class SparsifyEdges:
    """`sparsify_edges` as a PyTorch Geometric transform: `Compose([NormalizeFeatures(), SparsifyEdges(0.36)])`.

    Args: as `sparsify_edges`.
    """

    keep: float = 0.36
    score: str = "teddy"
    undirected: bool = True
    seed: int = 0

    def __call__(self, data: Any) -> Any:
        """A copy of `data` with fewer edges."""
        return sparsify_edges(data, self.keep, score=self.score, undirected=self.undirected, seed=self.seed)
