"""Scores of edges: larger means keep. `EDGE_SCORES` is the one table of what a user may name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import unknown
from .edges import check_edges


def degree_edge_score(edge_index: Tensor, num_nodes: int | None = None) -> Tensor:
    """TEDDY's score: high where both ends have low degree and neighbours of low degree.

    s_ij = u_i u_j with u_i = 1 / d_i^2 * sum over neighbours k of d_k^(-1/2). O(E), no features needed. Self loops
    do not count towards degrees and score +inf, so that they are never cut.

    Args:
        edge_index: (2, E) integers, both directions of every edge (one direction: degrees are too low).
        num_nodes: None takes the largest index plus one.
    Returns:
        (E,) float64; isolated nodes have u = 0, no NaN.
    Raises:
        ShapeError, DataError: as `check_edges`.
    Source: Seo, Yun and Yang 2024, the authors' edge score.

    >>> degree_edge_score(torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]]))[0]  # a cycle
    tensor(0.1250, dtype=torch.float64)
    """
    edge_index, count = check_edges(edge_index, num_nodes)
    degree, root, loops = _degrees(edge_index, count)
    source, target = edge_index[:, ~loops]
    around = torch.zeros_like(root).index_add_(0, source, root[target])
    u = torch.where(degree > 0, around / degree.clamp(min=1) ** 2, 0.0)
    return _with_loops(u[edge_index[0]] * u[edge_index[1]], loops)


def hub_edge_score(edge_index: Tensor, num_nodes: int | None = None) -> Tensor:
    """The reverse of TEDDY's score: edges between hubs stay. A control that should lose."""
    score = degree_edge_score(edge_index, num_nodes)
    return torch.where(score.isinf(), score, -score)


def one_hop_edge_score(edge_index: Tensor, num_nodes: int | None = None) -> Tensor:
    """1 / sqrt(d_i d_j): degrees of the ends alone, without their neighbourhoods."""
    edge_index, count = check_edges(edge_index, num_nodes)
    _, root, loops = _degrees(edge_index, count)
    return _with_loops(root[edge_index[0]] * root[edge_index[1]], loops)


def random_edge_score(edge_index: Tensor, num_nodes: int | None = None, *, seed: int = 0) -> Tensor:
    """Uniform noise, the same for (i, j) and (j, i): the control that stands beside every result."""
    edge_index, count = check_edges(edge_index, num_nodes)
    low, high = edge_index.min(0).values, edge_index.max(0).values
    keys, of_entry = torch.unique(low * count + high, return_inverse=True)
    noise = torch.rand(len(keys), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _with_loops(noise.to(edge_index.device)[of_entry], edge_index[0] == edge_index[1])


def _degrees(edge_index: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Degrees without self loops, their inverse roots (0 where isolated), and which entries are self loops."""
    loops = edge_index[0] == edge_index[1]
    degree = torch.bincount(edge_index[0][~loops], minlength=count).double()
    root = torch.where(degree > 0, degree.clamp(min=1) ** -0.5, 0.0)
    return degree, root, loops


def _with_loops(score: Tensor, loops: Tensor) -> Tensor:
    return torch.where(loops, torch.inf, score)


EDGE_SCORES: dict[str, Callable[..., Tensor]] = {
    "teddy": degree_edge_score,
    "random": random_edge_score,
    "reverse": hub_edge_score,
    "degree": one_hop_edge_score,
}


def edge_score(name: str, edge_index: Tensor, num_nodes: int | None = None, *, seed: int = 0) -> Tensor:
    """The score of `EDGE_SCORES` of that name; `seed` matters to random ones. Raises ConfigError for another name."""
    if name not in EDGE_SCORES:
        raise unknown("edge score", name, EDGE_SCORES)
    if name == "random":
        return random_edge_score(edge_index, num_nodes, seed=seed)
    return EDGE_SCORES[name](edge_index, num_nodes)
