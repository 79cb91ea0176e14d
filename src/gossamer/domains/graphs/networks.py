"""GCN, GIN, GraphSAGE, GAT in plain torch: messages are products with the sparse adjacency; cut edges save time.

Networks take (x, edge_index, edge_weight=None), as those of PyTorch Geometric do, which may stand in their place.
Layers are checked against PyTorch Geometric's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import unknown
from .product import SparseFeatures, Structure

Features = Tensor | SparseFeatures


class Edges:
    """Edges made ready for message passing: (i, j) sends from i to j; each node also to itself where `loops`."""

    def __init__(self, edge_index: Tensor, nodes: int, loops: bool) -> None:
        self.nodes, self.loops = nodes, loops
        if loops:
            own = torch.arange(nodes, device=edge_index.device)
            edge_index = torch.cat([edge_index[:, edge_index[0] != edge_index[1]], own.expand(2, -1)], dim=1)
        self.source, self.target = edge_index
        self.structure = Structure(self.target, self.source, (nodes, nodes))

    def weights(self, given: Tensor | None, edge_index: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight per message; ones where none are given, and for self loops."""
        if given is None:
            return torch.ones(len(self.source), dtype=dtype, device=self.source.device)
        if not self.loops:
            return given
        others = given[edge_index[0] != edge_index[1]]
        return torch.cat([others, torch.ones(self.nodes, dtype=given.dtype, device=given.device)])

    def to_target(self, values: Tensor) -> Tensor:
        """(messages, ...) summed at their targets: (nodes, ...)."""
        return values.new_zeros(self.nodes, *values.shape[1:]).index_add(0, self.target, values)

    def gcn_norm(self, weight: Tensor) -> Tensor:
        """D^-1/2 A D^-1/2 at each message."""
        root = self.to_target(weight).clamp(min=1e-12) ** -0.5
        return root[self.source] * weight * root[self.target]

    def softmax(self, logits: Tensor) -> Tensor:
        """(messages, heads), softmax over the messages that reach one node."""
        index = self.target[:, None].expand_as(logits)
        top = logits.new_full((self.nodes, logits.shape[1]), -torch.inf)
        top = top.scatter_reduce(0, index, logits.detach(), "amax")
        exp = (logits - top[self.target]).exp()
        return exp / self.to_target(exp)[self.target]


def _glorot(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape)))


class GCNLayer(nn.Module):
    """D^-1/2 (A + I) D^-1/2 X W, without bias (Kipf and Welling 2017)."""

    loops = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _glorot(inputs, outputs)

    def forward(self, x: Features, edges: Edges, weight: Tensor) -> Tensor:
        """x (nodes, inputs), weight (messages,) -> (nodes, outputs)."""
        return edges.structure.matmul(edges.gcn_norm(weight), x @ self.weight)


class GINLayer(nn.Module):
    """((1 + eps) X + A X) W with learnable eps, without bias (Xu et al. 2019; one linear map, as TEDDY has it)."""

    loops = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _glorot(inputs, outputs)
        self.eps = nn.Parameter(torch.zeros(1))

    def forward(self, x: Features, edges: Edges, weight: Tensor) -> Tensor:
        """As `GCNLayer`; the map is applied first, which is the same and cheaper."""
        h = x @ self.weight
        return (1 + self.eps) * h + edges.structure.matmul(weight, h)


class SAGELayer(nn.Module):
    """X W_own + mean of the neighbours' X W, without bias (Hamilton et al. 2017). Edge weights weigh the mean."""

    loops = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.own = _glorot(inputs, outputs), _glorot(inputs, outputs)

    def forward(self, x: Features, edges: Edges, weight: Tensor) -> Tensor:
        """As `GCNLayer`; a node without edges has its own part alone."""
        share = weight / edges.to_target(weight).clamp(min=1e-12)[edges.target]
        return x @ self.own + edges.structure.matmul(share, x @ self.weight)


class GATLayer(nn.Module):
    """Attention over neighbours and self (Velickovic et al. 2018). Heads are concatenated.

    An edge weight multiplies the attention logit while training; weight 0 removes the edge in evaluation.
    """

    loops = True

    def __init__(self, inputs: int, outputs: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.weight = _glorot(inputs, heads * outputs)
        self.att_src, self.att_dst = _glorot(heads, outputs), _glorot(heads, outputs)

    def forward(self, x: Features, edges: Edges, weight: Tensor) -> Tensor:
        """As `GCNLayer`, with heads * outputs columns."""
        h = (x @ self.weight).unflatten(1, (self.heads, -1))
        logits = (h * self.att_src).sum(-1)[edges.source] + (h * self.att_dst).sum(-1)[edges.target]
        logits = F.leaky_relu(logits, 0.2)
        if self.training:
            logits = logits * weight[:, None]
        else:
            logits = logits.masked_fill(weight[:, None] == 0, -torch.inf)
        share = F.dropout(edges.softmax(logits), self.dropout, self.training)
        return torch.cat([edges.structure.matmul(share[:, k], h[:, k]) for k in range(self.heads)], dim=1)


class Network(nn.Module):
    """Two layers with dropout between them.

    Args:
        first, second: layers of one kind. act: between them. dropout: in training, before the second.
    """

    def __init__(self, first: Any, second: Any, act: Callable[[Tensor], Tensor], dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.act, self.dropout = first, second, act, dropout
        self._seen: tuple[Tensor, Edges] | None = None

    def forward(self, x: Features, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """x (nodes, features), edge_index (2, E), edge_weight (E,) -> logits (nodes, classes)."""
        edges = self._ready(edge_index, x.shape[0])
        weight = edges.weights(edge_weight, edge_index, self.first.weight.dtype)
        hidden = F.dropout(self.act(self.first(x, edges, weight)), self.dropout, self.training)
        return self._output(hidden, self.second(hidden, edges, weight))

    def _output(self, hidden: Tensor, out: Tensor) -> Tensor:
        return out

    def _ready(self, edge_index: Tensor, nodes: int) -> Edges:
        """The edges made ready, kept while the same tensor comes."""
        if self._seen is None or self._seen[0] is not edge_index or self._seen[1].nodes != nodes:
            self._seen = (edge_index, Edges(edge_index, nodes, self.first.loops))
        return self._seen[1]


class _GIN(Network):
    """The logits are the mean of a linear map of the first hidden layer and the second one."""

    def __init__(self, inputs: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__(GINLayer(inputs, hidden), GINLayer(hidden, classes), torch.relu, dropout)
        self.skip = nn.Linear(hidden, classes, bias=False)

    def _output(self, hidden: Tensor, out: Tensor) -> Tensor:
        return (self.skip(hidden) + torch.relu(out)) / 2


def gcn(inputs: int, classes: int, hidden: int = 512, dropout: float = 0.5) -> Network:
    """Two GCN layers; the defaults are TEDDY's."""
    return Network(GCNLayer(inputs, hidden), GCNLayer(hidden, classes), torch.relu, dropout)


def gin(inputs: int, classes: int, hidden: int = 512, dropout: float = 0.5) -> Network:
    """Two GIN layers of one linear map each, logits from both; the defaults are TEDDY's."""
    return _GIN(inputs, hidden, classes, dropout)


def sage(inputs: int, classes: int, hidden: int = 512, dropout: float = 0.5) -> Network:
    """Two GraphSAGE layers with the mean of the neighbours."""
    return Network(SAGELayer(inputs, hidden), SAGELayer(hidden, classes), torch.relu, dropout)


def gat(inputs: int, classes: int, hidden: int = 512, dropout: float = 0.6, heads: int = 8) -> Network:
    """Two GAT layers, `heads` heads of hidden / heads columns, then one; the defaults are TEDDY's."""
    first = GATLayer(inputs, hidden // heads, heads, dropout)
    return Network(first, GATLayer(hidden // heads * heads, classes, 1, dropout), F.elu, dropout)


BACKBONES: dict[str, Callable[..., Network]] = {"gcn": gcn, "gin": gin, "gat": gat, "sage": sage}


def backbone(name: str, inputs: int, classes: int, **options: Any) -> Network:
    """The network of `BACKBONES` of that name. Raises ConfigError for another one."""
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return BACKBONES[name](inputs, classes, **options)
