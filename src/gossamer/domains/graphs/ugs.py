"""UGS, the iterative lottery ticket of graphs: learned masks on edges and weights, rewinding, many trainings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...kernels.topk import topk_mask
from ...metrics.classification import accuracy
from ...sparsify.gates import Gate
from .edges import Pairs, pair_up
from .prune import check_ratio
from .ticket import Ticket
from .training import Fit, Make, Settings, check_loss, inputs_for

Weights = dict[str, Tensor]


def ugs(
    make: Make,
    graph: Any,
    rounds: int = 20,
    *,
    edge_step: float = 0.05,
    weight_step: float = 0.1,
    edge_penalty: float = 1e-4,
    weight_penalty: float = 1e-4,
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
    Source: Chen et al. 2021 (UGS).
    """
    check_ratio("edge_step", edge_step)
    check_ratio("weight_step", weight_step)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        initial = {name: value.detach().clone() for name, value in model.named_parameters()}
        masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in initial.items()}
        alive = torch.ones(graph.edge_index.shape[1], dtype=torch.bool)
        seconds = 0.0
        for _ in range(rounds):
            learned = _Round(model, graph, initial, masks, alive)
            seconds += learned.run(settings, edge_penalty, weight_penalty).seconds
            alive, masks = learned.cut(edge_step, weight_step)
            fixed = _Round(model, graph, initial, masks, alive, learn=False)
            found = fixed.run(settings, 0.0, 0.0)
            seconds += found.seconds
    sparse = Fit(found.model, found.logits, found.val, found.test, found.epoch, seconds)
    return Ticket(sparse.model, graph.edge_index[:, alive], alive, masks, None, sparse, 2 * rounds)


class _Round:
    """One training from the first weights under masks that are learned or fixed."""

    def __init__(
        self, model: nn.Module, graph: Any, initial: Weights, masks: Weights, alive: Tensor, learn: bool = True
    ) -> None:
        self.model, self.graph, self.masks, self.alive, self.learn = model, graph, masks, alive, learn
        self.edges = graph.edge_index[:, alive]
        self.pairs: Pairs = pair_up(self.edges, graph.num_nodes)
        self.weights = {name: value.clone().requires_grad_() for name, value in initial.items()}
        self.edge_gate = _gate(self.pairs.count, learn=learn)
        self.weight_gates = {name: _gate(*value.shape, learn=learn) for name, value in initial.items()}

    def parameters(self) -> list[Tensor]:
        gates = [self.edge_gate, *self.weight_gates.values()] if self.learn else []
        return [*self.weights.values(), *(gate.weight for gate in gates)]

    def effective(self) -> Weights:
        """mask * gate * weight, by name."""
        return {n: self.weight_gates[n](w) * self.masks[n] for n, w in self.weights.items()}

    def logits(self, x: Any) -> Tensor:
        weight = self.edge_gate.weight[self.pairs.of_entry] if self.learn else None
        return functional_call(self.model, self.effective(), (x, self.edges), {"edge_weight": weight})

    def run(self, settings: Settings, edge_penalty: float, weight_penalty: float) -> Fit:
        """Train; gates and weights of the best validation epoch stay in place."""
        import time

        started, graph = time.perf_counter(), self.graph
        x = inputs_for(self.model, graph)
        optimizer = torch.optim.Adam(self.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        best = (-1, -1.0, torch.empty(0), [p.detach().clone() for p in self.parameters()])
        for epoch in range(settings.epochs):
            self.model.train()
            loss = F.cross_entropy(self.logits(x)[graph.train_mask], graph.y[graph.train_mask])
            if self.learn:
                loss = loss + edge_penalty * self.edge_gate.weight[self.pairs.of_entry].abs().sum()
                loss = loss + weight_penalty * sum(gate.weight.abs().sum() for gate in self.weight_gates.values())
            check_loss(loss, epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
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
