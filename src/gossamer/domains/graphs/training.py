"""Training of a node classifier on a whole graph, with what TEDDY adds: distillation and projection."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, NumericsError, ShapeError
from ...metrics.classification import accuracy
from ...training.losses import distillation
from .graph import check_graph
from .networks import Network
from .product import SparseFeatures
from .projection import L0Projection, parameters_of

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Settings:
    """How one network is trained; the defaults are the authors'."""

    epochs: int = 200
    lr: float = 0.01
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not (self.epochs >= 1 and self.lr > 0 and self.weight_decay >= 0):
            raise ConfigError(f"needs epochs >= 1, lr > 0, weight_decay >= 0, got {self}")


@dataclass(frozen=True)
class Fit:
    """A network at its best validation epoch (the latest of equal ones).

    Args:
        model: with the weights of that epoch. logits: (nodes, classes) of it in evaluation.
        val, test: accuracies in [0, 1]. epoch: from 0. seconds: of the training.
    """

    model: nn.Module
    logits: Tensor
    val: float
    test: float
    epoch: int
    seconds: float


def fit(
    make: Make,
    graph: Any,
    edge_index: Tensor | None = None,
    *,
    settings: Settings = Settings(),
    teacher: Tensor | None = None,
    distill: float = 0.0,
    weight_ratio: float = 0.0,
    seed: int = 0,
) -> Fit:
    """Train a fresh network on all nodes at once.

    Loss: cross entropy of the training nodes + distill * mean over all nodes of KL(teacher || network). After each
    step the weights are projected on the l0 ball; the reported network is exactly as sparse as asked.

    Args:
        make: builds the network, called (x, edge_index) -> logits (nodes, classes); of this room or of
            PyTorch Geometric. It goes to the device that the graph is on. It goes to the graph's device.
        graph: `Graph` or PyTorch Geometric `Data`. edge_index: edges to use in place of the graph's own.
        teacher: logits (nodes, classes) of a trained network; needed where distill > 0.
        weight_ratio: share of all parameters that is zero, in [0, 1).
        seed: of weights and dropout; the global generator is left as it was.
    Raises:
        ConfigError: a negative weight of the distillation, or no teacher. ShapeError: a teacher of another shape.
        DataError: as `check_graph`. NumericsError: the loss is no number.
    """
    check_graph(graph)
    _check_teacher(graph, teacher, distill)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(graph.x.device)
        projection = parameters_of(model, weight_ratio)
        best = _descend(model, graph, edge_index, settings, teacher if distill else None, distill, projection)
    epoch, val, logits, state = best
    model.load_state_dict(state)
    model.eval()
    projection.warn_if_empty()
    test = accuracy(logits[graph.test_mask], graph.y[graph.test_mask])
    return Fit(model, logits, val, test, epoch, time.perf_counter() - started)


def _descend(
    model: nn.Module,
    graph: Any,
    edge_index: Tensor | None,
    settings: Settings,
    teacher: Tensor | None,
    distill: float,
    projection: L0Projection,
) -> tuple[int, float, Tensor, dict[str, Tensor]]:
    """The best epoch: number, validation accuracy, logits, weights."""
    x, edges = inputs_for(model, graph), graph.edge_index if edge_index is None else edge_index
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    best: tuple[int, float, Tensor, dict[str, Tensor]] | None = None
    for epoch in range(settings.epochs):
        model.train()
        logits = model(x, edges)
        loss = F.cross_entropy(logits[graph.train_mask], graph.y[graph.train_mask])
        if teacher is not None:
            loss = loss + distill * distillation(logits, teacher, temperature=1.0)
        check_loss(loss, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        projection.step()
        logits = evaluate(model, x, edges)
        val = accuracy(logits[graph.val_mask], graph.y[graph.val_mask])
        if best is None or val >= best[1]:
            best = epoch, val, logits, copy.deepcopy(model.state_dict())
    assert best is not None  # epochs >= 1
    return best


def evaluate(model: nn.Module, x: Any, edge_index: Tensor) -> Tensor:
    """Logits of all nodes in evaluation mode, without gradient."""
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(x, edge_index)
    return logits


def inputs_for(model: nn.Module, graph: Any) -> Any:
    """The features; sparse for this room's networks where most are zero."""
    x = graph.x
    sparse = isinstance(model, Network) and int(x.count_nonzero()) < 0.1 * x.numel()
    return SparseFeatures(x) if sparse else x


def check_loss(loss: Tensor, epoch: int) -> None:
    """Raise NumericsError where the loss is NaN or infinite."""
    if not math.isfinite(loss.item()):
        raise NumericsError(f"the loss is {loss.item()} at epoch {epoch}; lower the learning rate or the distillation")


def _check_teacher(graph: Any, teacher: Tensor | None, distill: float) -> None:
    if not distill >= 0:
        raise ConfigError(f"the weight of the distillation must not be negative, got {distill}")
    if distill and teacher is None:
        raise ConfigError(f"distill={distill} needs teacher logits")
    if teacher is not None and (teacher.ndim != 2 or len(teacher) != graph.num_nodes):
        raise ShapeError(f"teacher logits have shape {tuple(teacher.shape)}, but the graph has {graph.num_nodes} nodes")
