"""Graphs: fewer edges and fewer weights for graph neural networks, in one shot."""

from .edges import coalesce, is_undirected, undirect
from .graph import Graph, block_model, karate, planetoid
from .networks import BACKBONES, Network, backbone, gat, gcn, gin, sage
from .ogb import arxiv
from .projection import L0Projection
from .prune import SparsifyEdges, kept_edges, ladder, prune_edges, sparsify_edges
from .scores import EDGE_SCORES, degree_edge_score, edge_score
from .separation import class_distances, sinkhorn_distance
from .ticket import Ticket, teddy
from .training import Fit, Settings, fit
from .ugs import ugs, wd_glt

__all__ = [
    "BACKBONES",
    "EDGE_SCORES",
    "Fit",
    "Graph",
    "L0Projection",
    "Network",
    "Settings",
    "SparsifyEdges",
    "Ticket",
    "arxiv",
    "backbone",
    "block_model",
    "class_distances",
    "coalesce",
    "degree_edge_score",
    "edge_score",
    "fit",
    "gat",
    "gcn",
    "gin",
    "is_undirected",
    "karate",
    "kept_edges",
    "ladder",
    "planetoid",
    "prune_edges",
    "sage",
    "sinkhorn_distance",
    "sparsify_edges",
    "teddy",
    "ugs",
    "undirect",
    "wd_glt",
]
