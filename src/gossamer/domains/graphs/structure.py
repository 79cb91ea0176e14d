"""What a cut did to a graph, without labels: components, nodes left alone, degrees, and the cost of a message pass."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor


def structure(edge_index: Tensor, nodes: int) -> dict[str, float]:
    """Figures of a graph whose edges are read as undirected.

    Returns:
        {"edges": without repetitions, "components", "largest component": share of the nodes in it,
        "nodes without edge", "mean degree", "largest degree"}.
    """
    low, high = edge_index.min(0).values, edge_index.max(0).values
    keys = torch.unique(low * nodes + high).numpy()
    a, b = keys // nodes, keys % nodes
    count, member = connected_components(coo_matrix((np.ones(len(a)), (a, b)), (nodes, nodes)), directed=False)
    degree = np.bincount(a, minlength=nodes) + np.bincount(b, minlength=nodes)
    return {
        "edges": len(keys),
        "components": int(count),
        "largest component": float(np.bincount(member).max() / nodes),
        "nodes without edge": int((degree == 0).sum()),
        "mean degree": float(degree.mean()),
        "largest degree": int(degree.max()),
    }
