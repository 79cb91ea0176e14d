"""Graph tickets: one small GCN on a generated block model or a citation graph, trained in every way that is compared.

Protocols of TEDDY's small reproduction: 64 % of the edges and 88 % of the weights cut, distillation weight 10; width 64
and 200 epochs on generated graphs, 32 and 100 on the larger citation graphs. A generated graph has 600 nodes of 4
classes, a power law of degrees and bags of 300 words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.domains.graphs import Fit, Graph, Settings, backbone, block_model, fit, planetoid, teddy, ugs, wd_glt
from gossamer.domains.graphs.ticket import Ticket
from gossamer.domains.graphs.training import Make

EDGES, WEIGHTS, DISTILL, ROUNDS = 0.64, 0.88, 10.0, 20

# arm -> what `teddy` is given
ARMS: dict[str, dict[str, Any]] = {
    "teddy": {},
    "random edges": {"score": "random"},
    "degree score": {"score": "degree"},
    "without distillation": {"distill": 0.0},
    "random edges, without distillation": {"score": "random", "distill": 0.0},
    **{
        f"{name} edges only, {ratio:.0%}": {
            "score": name,
            "distill": 0.0,
            "weight_ratio": 0.0,
            "edge_ratio": ratio,
        }
        for ratio in (EDGES, 0.85)
        for name in ("teddy", "random", "reverse")
    },
}


ITERATIVE: dict[str, Callable[..., Ticket]] = {"ugs": ugs, "wd-glt": partial(wd_glt, every=False)}


def graph_of(data: str, seed: int) -> Graph:
    """A block model of that seed, or the planetoid graph of that name."""
    return block_model(600, 4, words=300, seed=seed) if data == "blocks" else planetoid(data)


def train(data: str, arm: str, seed: int, *, net: str = "gcn", mutant: str | None = None) -> dict[str, Any]:
    """One arm ("dense", one of `ITERATIVE` or one of `ARMS`), cached: accuracies in points, exact counts, seconds."""
    settings = {"data": data, "arm": arm, "seed": seed, "net": net, "mutant": mutant}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _train(data, arm, seed, net, mutant)

    return cell(__name__, settings, compute)


def _protocol(data: str, graph: Graph, net: str) -> tuple[Make, Settings]:
    hidden, epochs = (64, 200) if data == "blocks" else (32, 100)
    return lambda: backbone(net, graph.num_features, graph.num_classes, hidden=hidden), Settings(epochs=epochs)


@lru_cache(maxsize=1)  # the arms of one seed follow each other
def _dense(data: str, seed: int, net: str) -> tuple[Graph, Fit]:
    graph = graph_of(data, seed)
    make, settings = _protocol(data, graph, net)
    return graph, fit(make, graph, settings=settings, seed=seed)


def _train(data: str, arm: str, seed: int, net: str, mutant: str | None) -> dict[str, Any]:
    graph, dense = _dense(data, seed, net)
    make, settings = _protocol(data, graph, net)
    if arm in ITERATIVE:
        found = ITERATIVE[arm](make, graph, ROUNDS, settings=settings, seed=seed)
        return _row(graph, found.sparse, found.edge_mask, found.trainings)
    if arm == "dense":
        return _row(graph, dense, torch.ones(graph.edge_index.shape[1], dtype=torch.bool), 1)
    options = {"edge_ratio": EDGES, "weight_ratio": WEIGHTS, "distill": DISTILL} | ARMS[arm]
    return _ticket(make, graph, dense, options, settings, seed, mutant)


def _ticket(
    make: Make, graph: Graph, dense: Fit, options: dict[str, Any], settings: Settings, seed: int, mutant: str | None
) -> dict[str, Any]:
    """TEDDY with its fault, if one is planted."""
    if mutant == "random_score":
        options["score"] = "random"
    if mutant == "no_projection":
        options["weight_ratio"] = 0.0
    if mutant == "no_distillation":
        options["distill"] = 0.0
    if mutant == "wrong_teacher":  # the logits of other nodes
        order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(seed))
        dense = Fit(dense.model, dense.logits[order], dense.val, dense.test, dense.epoch, dense.seconds)
    found = teddy(make, graph, dense=dense, settings=settings, seed=seed, **options)
    row = _row(graph, found.sparse, found.edge_mask, 2)
    return row | {"seconds": row["seconds"] + dense.seconds}


def _row(graph: Graph, found: Fit, mask: torch.Tensor, trainings: int) -> dict[str, Any]:
    weights = torch.cat([p.detach().flatten() for p in found.model.parameters()])
    edges = graph.edge_index[:, mask]
    both = {(int(i), int(j)) for i, j in edges.T.tolist()}
    return {
        "test": 100 * found.test,
        "val": 100 * found.val,
        "edges": int(mask.sum()),
        "entries": len(mask),
        "zeros": int((weights == 0).sum()),
        "weights": weights.numel(),
        "undirected": all((j, i) in both for i, j in both),
        "seconds": found.seconds,
        "trainings": trainings,
    }
