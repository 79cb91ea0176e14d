"""Iterative lottery tickets of graphs: learned masks on edges and weights, rewinding, many trainings (UGS, WD-GLT)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...errors import ConfigError
from ...kernels.topk import topk_mask
from ...metrics.classification import accuracy
from ...sparsify.gates import Gate
from .edges import Pairs, pair_up
from .prune import check_ratio
from .separation import class_distances
from .ticket import Ticket
from .training import Fit, Make, Settings, check_loss, inputs_for

Weights = dict[str, Tensor]
Penalty = Callable[["_Round", Tensor], Tensor]  # of a round with learned masks and its logits


def ugs(
    make: Make,
    graph: Any,
    rounds: int = 20,
    *,
    edge_step: float = 0.05,
    weight_step: float = 0.1,
    edge_penalty: float = 1e-4,
    weight_penalty: float = 1e-4,
    every: bool = True,
    settings: Settings = Settings(),
    seed: int = 0,
) -> Ticket:
    """Find a ticket by repeated training: learn masks, cut the smallest, rewind the weights, train again.

    Each round is two trainings: one with learned masks, and one with fixed masks from the first weights, which is
    what is reported. Masks over edges are gates, one for each undirected edge.

    Args:
        make: builds the network, called (x, edge_index, edge_weight=...). graph: as in `teddy`.
        rounds: 20 in the paper. edge_step, weight_step: share of the remaining ones that a round cuts.
        edge_penalty, weight_penalty: of the L1 norm of the masks.
        every: train with fixed masks after every round, as a ladder of tickets needs; else only after the last one.
    Source: Chen et al. 2021 (UGS).
    """

    def norms(learned: _Round, logits: Tensor) -> Tensor:
        weights = sum(gate.weight.abs().sum() for gate in learned.weight_gates.values())
        return edge_penalty * learned.edge_weights().abs().sum() + weight_penalty * weights

    return _iterate(make, graph, rounds, (edge_step, weight_step), norms, settings, seed, every)


def wd_glt(
    make: Make,
    graph: Any,
    rounds: int = 20,
    *,
    edge_step: float = 0.05,
    weight_step: float = 0.1,
    separation: float = 0.1,
    every: bool = True,
    settings: Settings = Settings(),
    seed: int = 0,
) -> Ticket:
    """`ugs` whose masks are learned by driving apart the outputs of the classes, without an L1 norm.

    The transport distance between the outputs of each predicted class and all others enters the loss, unlabelled nodes
    included; masks of edges stay in [0, 1].

    Args:
        separation: weight of the distances. Other arguments as in `ugs`.
    Source: Hui et al. 2023 (WD-GLT), as far as TEDDY's comparison uses it.
    """

    def apart(learned: _Round, logits: Tensor) -> Tensor:
        return -separation * class_distances(logits.softmax(1))

    return _iterate(make, graph, rounds, (edge_step, weight_step), apart, settings, seed, every, bounded=True)


def _iterate(
    make: Make,
    graph: Any,
    rounds: int,
    step: tuple[float, float],
    penalty: Penalty,
    settings: Settings,
    seed: int,
    every: bool,
    bounded: bool = False,
) -> Ticket:
    if rounds < 1:
        raise ConfigError(f"needs at least one round, got {rounds}")
    check_ratio("edge_step", step[0])
    check_ratio("weight_step", step[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(graph.x.device)
        initial = {name: value.detach().clone() for name, value in model.named_parameters()}
        masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in initial.items()}
        alive = torch.ones(graph.edge_index.shape[1], dtype=torch.bool, device=graph.edge_index.device)
        seconds, trainings = 0.0, 0
        for number in range(1, rounds + 1):
            learned = _Round(model, graph, initial, masks, alive, penalty, bounded)
            seconds += learned.run(settings).seconds
            alive, masks = learned.cut(*step)
            trainings += 1
            if every or number == rounds:
                found = _Round(model, graph, initial, masks, alive).run(settings)
                seconds, trainings = seconds + found.seconds, trainings + 1
    sparse = Fit(found.model, found.logits, found.val, found.test, found.epoch, seconds)
    return Ticket(sparse.model, graph.edge_index[:, alive], alive, masks, None, sparse, trainings)


class _Round:
    """One training from the first weights, under masks that are learned (with a penalty) or fixed (without)."""

    def __init__(
        self,
        model: nn.Module,
        graph: Any,
        initial: Weights,
        masks: Weights,
        alive: Tensor,
        penalty: Penalty | None = None,
        bounded: bool = False,
    ) -> None:
        self.model, self.graph, self.masks, self.alive = model, graph, masks, alive
        self.penalty, self.bounded, learn = penalty, bounded, penalty is not None
        self.edges = graph.edge_index[:, alive]
        self.pairs: Pairs = pair_up(self.edges, graph.num_nodes)
        self.weights = {name: value.clone().requires_grad_() for name, value in initial.items()}
        self.edge_gate = _gate(self.pairs.count, learn=learn).to(alive.device)
        self.weight_gates = {n: _gate(*value.shape, learn=learn).to(alive.device) for n, value in initial.items()}

    def parameters(self) -> list[Tensor]:
        gates = [self.edge_gate, *self.weight_gates.values()] if self.penalty else []
        return [*self.weights.values(), *(gate.weight for gate in gates)]

    def effective(self) -> Weights:
        """mask * gate * weight, by name."""
        return {n: self.weight_gates[n](w) * self.masks[n] for n, w in self.weights.items()}

    def edge_weights(self) -> Tensor:
        """The gate of each entry of the edges."""
        return self.edge_gate.weight[self.pairs.of_entry]

    def logits(self, x: Any) -> Tensor:
        weight = self.edge_weights() if self.penalty else None
        return functional_call(self.model, self.effective(), (x, self.edges), {"edge_weight": weight})

    def run(self, settings: Settings) -> Fit:
        """Train; gates and weights of the best validation epoch stay in place."""
        started, graph = time.perf_counter(), self.graph
        x = inputs_for(self.model, graph)
        optimizer = torch.optim.Adam(self.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        best = (-1, -1.0, torch.empty(0), [p.detach().clone() for p in self.parameters()])
        for epoch in range(settings.epochs):
            self.model.train()
            logits = self.logits(x)
            loss = F.cross_entropy(logits[graph.train_mask], graph.y[graph.train_mask])
            if self.penalty:
                loss = loss + self.penalty(self, logits)
            check_loss(loss, epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if self.bounded:
                self.edge_gate.weight.data.clamp_(0, 1)
            self.model.eval()
            with torch.no_grad():
                logits = self.logits(x)
            val = accuracy(logits[graph.val_mask], graph.y[graph.val_mask])
            if val >= best[1]:
                best = (epoch, val, logits, [p.detach().clone() for p in self.parameters()])
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), best[3], strict=True):
                parameter.copy_(value)
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.effective()[name])
        test = accuracy(best[2][graph.test_mask], graph.y[graph.test_mask])
        return Fit(self.model, best[2], best[1], test, best[0], time.perf_counter() - started)

    def cut(self, edge_step: float, weight_step: float) -> tuple[Tensor, Weights]:
        """The masks after the smallest gates were cut from what is left."""
        gate = self.edge_gate.weight.detach().abs()
        stay = topk_mask(gate, self.pairs.count - round(edge_step * self.pairs.count), name="edge gates")
        alive = self.alive.clone()
        alive[self.alive] = stay[self.pairs.of_entry]
        names = list(self.masks)
        before = torch.cat([self.masks[n].flatten() for n in names])
        sizes = torch.cat([self.weight_gates[n].weight.detach().abs().flatten() for n in names])
        left = int(before.sum())
        after = topk_mask(sizes.masked_fill(~before, -1.0), left - round(weight_step * left), name="weight gates")
        parts = after.split([self.masks[n].numel() for n in names])
        return alive, {n: part.view_as(self.masks[n]) for n, part in zip(names, parts, strict=True)}


def _gate(*shape: int, learn: bool) -> Gate:
    """Ones, with a little noise where they are learned, so that no two are equal."""
    gate = Gate(*shape, learn=learn)
    if learn:
        with torch.no_grad():
            gate.weight += 1e-5 * torch.rand(shape)  # type: ignore[misc]
    return gate
