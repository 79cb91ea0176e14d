"""TEDDY: a sparse graph and a sparse network in one shot, two trainings in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .prune import kept_edges
from .training import Fit, Make, Settings, fit


@dataclass(frozen=True)
class Ticket:
    """A graph lottery ticket.

    Args:
        model: the sparse network at its best validation epoch. edge_index: (2, kept) edges that stayed.
        edge_mask: (E,) bool over the graph's entries. weight_masks: parameter name -> bool, True = not zero.
        dense, sparse: figures of the teacher (None where its logits were given) and of the ticket.
        trainings: number of trainings it took.
    """

    model: nn.Module
    edge_index: Tensor
    edge_mask: Tensor
    weight_masks: dict[str, Tensor]
    dense: Fit | None
    sparse: Fit
    trainings: int

    @property
    def report(self) -> dict[str, float]:
        """Accuracies in [0, 1], kept shares, seconds."""
        weights = torch.cat([mask.flatten() for mask in self.weight_masks.values()])
        dense = {"dense_test": self.dense.test, "dense_seconds": self.dense.seconds} if self.dense else {}
        return {
            **dense,
            "test": self.sparse.test,
            "val": self.sparse.val,
            "edges_kept": float(self.edge_mask.double().mean()),
            "weights_kept": float(weights.double().mean()),
            "seconds": self.sparse.seconds + (self.dense.seconds if self.dense else 0.0),
            "trainings": float(self.trainings),
        }


def teddy(
    make: Make,
    graph: Any,
    edge_ratio: float = 0.64,
    weight_ratio: float = 0.88,
    *,
    distill: float = 0.1,
    score: str = "teddy",
    undirected: bool = True,
    settings: Settings = Settings(),
    dense: Fit | None = None,
    seed: int = 0,
) -> Ticket:
    """Train dense, cut edges once by degree, train the sparse network on the sparse graph.

    Args:
        make: builds the network; as in `fit`. graph: `Graph` or PyTorch Geometric `Data`.
        edge_ratio, weight_ratio: shares that are cut, in [0, 1); the defaults are rung 20 of the authors' ladder.
        distill: weight of the distillation to the dense network on all nodes. 0.1 is the authors' default; they take 10
            on Citeseer, and small networks gain from that.
        score: a name of `EDGE_SCORES`; "random" is the control.
        dense: a trained teacher, to be spared its training.
        seed: of both trainings and of random scores.
    Raises:
        ConfigError, ShapeError, DataError, MaskError, NumericsError: as `fit` and `sparsify_edges`.
    Source: Seo, Yun and Yang 2024.
    """
    trainings = 1 + (dense is None)
    teacher = dense or fit(make, graph, settings=settings, seed=seed)
    mask = kept_edges(
        graph.edge_index, 1 - edge_ratio, score=score, undirected=undirected, num_nodes=graph.num_nodes, seed=seed
    )
    edges = graph.edge_index if bool(mask.all()) else graph.edge_index[:, mask]
    sparse = fit(
        make,
        graph,
        edges,
        settings=settings,
        teacher=teacher.logits,
        distill=distill,
        weight_ratio=weight_ratio,
        seed=seed,
    )
    return Ticket(sparse.model, edges, mask, weight_masks(sparse.model), teacher, sparse, trainings)


def weight_masks(model: nn.Module) -> dict[str, Tensor]:
    """Which entries of each parameter are not zero."""
    return {name: parameter.detach() != 0 for name, parameter in model.named_parameters()}
