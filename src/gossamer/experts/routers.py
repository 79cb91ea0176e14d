"""The routers: token choice, expert choice, transport with bounded columns, Sinkhorn, and a fixed hash."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.experts.routing import RoutingPlan, capacity, check, check_factor, check_whole_group, facts, plan_of
from gossamer.kernels.topk import topk_rows
from gossamer.transport import Entropic, assign, solve_ot


class Policy:
    """What all routers do first: check what they got. A policy then says in `plan` who goes where."""

    takes_bias: ClassVar[bool] = False

    def __call__(
        self, logits: Tensor, mask: Tensor | None = None, *, bias: Tensor | None = None, ids: Tensor | None = None
    ) -> RoutingPlan:
        check(logits, mask)
        if bias is not None and not self.takes_bias:
            raise ConfigError(f"{type(self).__name__} takes no selection bias; only TopK does")
        return self.plan(Asked(logits, mask, bias, ids))

    def plan(self, asked: Asked) -> RoutingPlan:
        """The plan for checked arguments."""
        raise NotImplementedError


class Asked(NamedTuple):
    """The arguments of a router, as in `routing.Router`."""

    logits: Tensor
    mask: Tensor | None
    bias: Tensor | None
    ids: Tensor | None


@dataclass(frozen=True)
class TopK(Policy):
    """Each token takes its k most probable experts (Shazeer et al. 2017; k = 1 is Switch, Fedus et al. 2022).

    Args:
        k: experts of a token, 1 <= k <= E; 2 in CLIP-MoE.
        renormalise: divide the k weights by their sum, which is a softmax over the k logits. With k = 1 the weight is
            then always 1 and the gate gets no gradient: a warning says so.
        capacity_factor: None is dropless; else an expert takes ceil(N k factor / E) tokens of a group and drops others.
        multiple: the capacity is rounded up to it.
        priority: who is served first where capacity is short: "position" (first choices of all tokens in order, then
            second ones) or "probability" (tokens with the largest gate first; Riquelme et al. 2021, batch priority).
    Raises:
        ConfigError: k < 1 here, k > E when routing, a capacity that is 0, an unknown priority.
    """

    takes_bias: ClassVar[bool] = True
    k: int = 2
    renormalise: bool = True
    capacity_factor: float | None = None
    multiple: int = 1
    priority: Literal["position", "probability"] = "position"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError(f"k, the experts of a token, must be an integer of at least 1, got {self.k!r}")
        if self.capacity_factor is not None:
            check_factor(self.capacity_factor, self.multiple)
        if self.priority not in ("position", "probability"):
            raise ConfigError(f"priority must be 'position' or 'probability', got {self.priority!r}")
        if self.k == 1 and self.renormalise:
            warnings.warn(
                "k=1 with renormalise=True gives every token weight 1 and the gate no gradient; use renormalise=False",
                stacklevel=3,
            )

    def plan(self, asked: Asked) -> RoutingPlan:
        logits, mask = asked.logits, asked.mask
        experts = logits.shape[-1]
        if self.k > experts:
            raise ConfigError(f"k={self.k} experts of a token, but there are only {experts}; lower k")
        gate = logits.softmax(-1)
        chosen = (gate if asked.bias is None else gate + asked.bias).topk(self.k, dim=-1).indices
        weight = gate.gather(-1, chosen)
        if self.renormalise:
            weight = weight / weight.sum(-1, keepdim=True)
        if self.capacity_factor is None and mask is None:
            return self._dropless(chosen, weight, logits)
        wanted = torch.zeros_like(gate, dtype=torch.bool).scatter(-1, chosen, True)
        if mask is not None:
            wanted = wanted & mask.unsqueeze(-1)
        weights = torch.zeros_like(gate).scatter(-1, chosen, weight)
        if self.capacity_factor is not None:
            wanted = wanted & self._served(gate, chosen, wanted)
        return plan_of(wanted, weights, logits, mask)

    def _dropless(self, chosen: Tensor, weight: Tensor, logits: Tensor) -> RoutingPlan:
        """All pairs, without host synchronisation."""
        groups, tokens, experts = logits.shape
        token = torch.arange(groups * tokens, device=logits.device).repeat_interleave(self.k)
        expert = chosen.flatten()
        counts = torch.zeros(experts, dtype=torch.int64, device=logits.device)
        counts = counts.scatter_add(0, expert, torch.ones_like(expert))
        dropped = torch.zeros(groups, tokens, dtype=torch.bool, device=logits.device)
        return RoutingPlan(token, expert, weight.flatten(), counts, dropped, facts(logits, None))

    def _served(self, gate: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
        """(G, N, E) bool: pairs that find room in their expert."""
        groups, tokens, experts = gate.shape
        room = capacity(tokens, experts, self.capacity_factor or 1.0, self.k, self.multiple)
        order = torch.arange(tokens, device=gate.device).expand(groups, tokens)
        if self.priority == "probability":
            order = gate.amax(-1).argsort(dim=-1, descending=True, stable=True)
        lines = order.unsqueeze(-1)
        queue = chosen.gather(1, lines.expand_as(chosen)).mT.flatten(1)  # (G, k N): all first choices come first
        asks = F.one_hot(queue, experts) * wanted.gather(1, lines.expand_as(wanted)).repeat(1, self.k, 1)
        fits = (asks > 0) & (asks.cumsum(1) <= room)
        fits = fits.view(groups, self.k, tokens, experts).any(1)
        return torch.zeros_like(wanted).scatter(1, lines.expand_as(wanted), fits)


@dataclass(frozen=True)
class ExpertChoice(Policy):
    """Each expert takes its ceil(N factor / E) most probable tokens of the group (Zhou et al. 2022).

    Args:
        capacity_factor: mean number of experts of a token; 2 in the publication.
        renormalise: make the weights of each chosen token sum to 1, as sparse upcycling of vision models does.
        causal: must be False, for the routes depend on later tokens.
    Raises:
        ConfigError: capacity 0, causal, or a selection bias, which this balanced router has no use for.
    """

    capacity_factor: float = 2.0
    renormalise: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        check_factor(self.capacity_factor)
        check_whole_group("ExpertChoice", self.causal)

    def plan(self, asked: Asked) -> RoutingPlan:
        logits, mask = asked.logits, asked.mask
        gate = logits.softmax(-1)
        score = gate if mask is None else gate.masked_fill(~mask.unsqueeze(-1), -1.0)
        chosen = topk_rows(score.mT, capacity(gate.shape[1], gate.shape[2], self.capacity_factor), name="gates").mT
        return plan_of(chosen, _weights(gate, chosen, self.renormalise), logits, mask)


@dataclass(frozen=True)
class Transport(Policy):
    """Sparsity-constrained optimal transport: no expert above its capacity, no auxiliary loss (Liu et al. 2023).

    Args:
        capacity_factor: an expert takes at most ceil(N factor / E) tokens.
        gamma, steps, lr: of the solver; 1, 20 and 0.01 in the authors' code. renormalise: as in `ExpertChoice`.
    Raises:
        ConfigError: as `ExpertChoice`; also what `gossamer.transport.assign` raises.
    """

    capacity_factor: float = 2.0
    gamma: float = 1.0
    steps: int = 20
    lr: float = 1e-2
    renormalise: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        check_factor(self.capacity_factor)
        check_whole_group("Transport", self.causal)

    def plan(self, asked: Asked) -> RoutingPlan:
        logits, mask = asked.logits, asked.mask
        gate = logits.softmax(-1)
        room = capacity(gate.shape[1], gate.shape[2], self.capacity_factor)
        found = assign(gate, room, gamma=self.gamma, steps=self.steps, lr=self.lr, mask=mask)
        weights = _weights(gate, found.chosen, self.renormalise)
        return plan_of(found.chosen, weights, logits, mask, {"token_error": found.token_error})


@dataclass(frozen=True)
class Sinkhorn(Policy):
    """Each token takes the expert to which a balanced entropic plan sends most of it (as S-BASE; Clark et al. 2022).

    Args:
        epsilon: of the entropy; smaller is nearer to a balanced assignment and slower.
    Raises:
        ConfigError: as `ExpertChoice`.
    """

    epsilon: float = 0.05
    causal: bool = False

    def __post_init__(self) -> None:
        check_whole_group("Sinkhorn", self.causal)
        Entropic(self.epsilon)

    def plan(self, asked: Asked) -> RoutingPlan:
        logits, mask = asked.logits, asked.mask
        gate = logits.softmax(-1)
        groups, tokens, experts = gate.shape
        mass = gate.new_ones(groups, tokens, dtype=torch.float64) if mask is None else mask.double()
        share = mass.sum(-1, keepdim=True).expand(-1, experts) / experts
        plan = solve_ot(-gate.detach().double(), mass, share, Entropic(self.epsilon), mask=mask).plan
        chosen = F.one_hot(plan.argmax(-1), experts).bool()
        return plan_of(chosen, gate, logits, mask)


@dataclass(frozen=True)
class Hash(Policy):
    """A fixed expert for each token id, whatever the logits are (Roller et al. 2021).

    Args:
        seed: of the hash.
    Raises:
        ConfigError: no ids were given to the layer. ShapeError: ids of another shape.
    """

    seed: int = 0

    def plan(self, asked: Asked) -> RoutingPlan:
        logits, mask = asked.logits, asked.mask
        if asked.ids is None:
            raise ConfigError("the Hash router needs the tokens' ids: call the layer with ids=, one integer per token")
        if asked.ids.shape != logits.shape[:2]:
            raise ShapeError(f"ids must be of shape {tuple(logits.shape[:2])}, got {tuple(asked.ids.shape)}")
        mixed = (asked.ids.long() + self.seed + 1) * 2654435761 % 2**32  # Knuth's multiplicative hash
        mixed = ((mixed ^ (mixed >> 15)) * 2246822519) % 2**32
        chosen = F.one_hot((mixed ^ (mixed >> 13)) % logits.shape[-1], logits.shape[-1]).bool()
        return plan_of(chosen, torch.ones_like(logits), logits, mask)


def _weights(gate: Tensor, chosen: Tensor, renormalise: bool) -> Tensor:
    weights = gate * chosen.to(gate.dtype)
    if renormalise:
        total = weights.sum(-1, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
    return weights
