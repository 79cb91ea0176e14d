"""Graph networks over a fixed graph: rounds of messages by shared networks, their neurons' states shared too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .folded import Array
from .model import Gated, GatedReLUMLP, deviation, finite
from .transition import Box, Chain, Dynamics, Term


@dataclass(frozen=True)
class Round:
    """One round of messages: every edge reads the state, one shared network answers, answers are added to the state.

    Args:
        net: name of the network. read: (edges, inputs, n + m) of [x; u]. write: (edges, n, outputs).
        action: (n, m), what actions add by themselves. domain: box of the network's inputs.
    """

    net: str
    read: Array
    write: Array
    action: Array
    domain: Box


class GraphNetwork(Gated):
    """[x; u] (B, n + m) -> the learned part of x' - x (B, learned), by rounds of messages one after another.

    Sums over edges are linear, so that the whole stays a mixed-integer program; a neuron has one state for all edges
    and all rounds that use its network.

    Args:
        nets: by name. rounds: at least one. states, actions: n and m. learned: the first entries of the state, which
            the data hold displacements of.
    Raises:
        ConfigError: no rounds, or one of an unknown network.
    Source: publication, section on graph neural dynamics; Battaglia et al. 2018, algorithm 1.
    """

    out_scale: Tensor

    def __init__(
        self,
        nets: Mapping[str, GatedReLUMLP],
        rounds: Sequence[Round],
        states: int,
        actions: int,
        learned: int,
    ) -> None:
        super().__init__()
        strange = [r.net for r in rounds if r.net not in nets]
        if not rounds or strange:
            raise ConfigError(f"a graph network needs rounds of its networks {sorted(nets)}, got {strange or 'none'}")
        self.nets = nn.ModuleDict(dict(nets))
        self.rounds, self.learned = tuple(rounds), learned
        self.widths = (states + actions, learned)
        self.states_count = states
        self.register_buffer("out_scale", torch.ones(learned))

    def net(self, name: str) -> GatedReLUMLP:
        """The shared network of that name."""
        found = self.nets[name]
        assert isinstance(found, GatedReLUMLP)
        return found

    def parts(self) -> list[GatedReLUMLP]:
        """The shared networks."""
        return [self.net(name) for name in self.nets]

    def forward(self, x: Tensor, temperature: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Displacements; with a temperature undecided neurons are sampled, once a row for all uses of a network."""
        gates = {name: self.net(name).gates(len(x), temperature, generator) for name in self.nets}
        n = self.states_count
        state, u = x[:, :n], x[:, n:]
        for each in self.rounds:
            read, write, action = (torch.as_tensor(a, dtype=x.dtype) for a in (each.read, each.write, each.action))
            v = torch.einsum("eiz,bz->bei", read, torch.cat([state, u], 1))
            net, gate = self.net(each.net), gates[each.net]
            out = net.given(v.flatten(0, 1), gate.repeat_interleave(v.shape[1], 0) if gate.ndim == 3 else gate)
            out = out.unflatten(0, v.shape[:2])
            state = state + torch.einsum("eno,beo->bn", write, out) + u @ action.T
        return (state - x[:, :n])[:, : self.learned]

    @torch.no_grad()
    def standardise(self, x: Tensor, y: Tensor) -> None:
        """Scale every network by what it reads in the data and by the displacements; odd functions stay odd."""
        finite(x, y)
        spread = y.std(correction=0)
        for name in self.nets:
            read = next(torch.as_tensor(r.read, dtype=x.dtype) for r in self.rounds if r.net == name)
            seen = torch.einsum("eiz,bz->bei", read, x).flatten(0, 1)
            self.net(name).scale.copy_(deviation(seen))
            self.net(name).out_scale.fill_(spread)
        self.out_scale.copy_(deviation(y))

    def dynamics(self) -> Chain:
        """The same rounds as dynamics to plan with."""
        n = self.states_count
        made: list[Dynamics] = []
        for k, each in enumerate(self.rounds):
            if k and each is self.rounds[k - 1]:
                made.append(made[-1])  # bounds are found once
                continue
            terms = tuple(Term(read, write) for read, write in zip(each.read, each.write, strict=True))
            made.append(Dynamics(self.net(each.net), np.eye(n), each.action, terms, each.domain))
        return Chain(tuple(made))
