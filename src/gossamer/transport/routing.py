"""Tokens to experts as a transport problem: no expert above its capacity, and no auxiliary loss."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.transport.problem import Problem
from gossamer.transport.solvers import Adam, Objective, maximise

SIDES = ("experts", "tokens")


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which token goes to which expert; G groups of N tokens, E experts.

    Attributes:
        plan: (G, N, E) float32, mass of each pair; no graph. chosen: (G, N, E) bool, where it is not zero.
        token_error: (G,) L1 distance of the tokens' mass from 1, as a share: what the fixed number of steps left.
    """

    plan: Tensor
    chosen: Tensor
    token_error: Tensor

    def weights(self, gate: Tensor) -> Tensor:
        """The gate (G, N, E) at the chosen pairs and 0 elsewhere: combine weights that carry the gate's gradient."""
        return gate * self.chosen.to(gate.dtype)

    @property
    def load(self) -> Tensor:
        """(G, E) tokens of each expert."""
        return self.chosen.sum(-2)

    @property
    def choices(self) -> Tensor:
        """(G, N) experts of each token; 0 where it is left out."""
        return self.chosen.sum(-1)


def capacity_of(tokens: int, experts: int, factor: float = 1.0, multiple: int = 4) -> int:
    """Tokens that an expert takes of a group: ceil(tokens * factor / experts), rounded up to a multiple, at most all.

    Args:
        multiple: 4 in the authors' code (V-MoE).
    Raises:
        ConfigError: the capacity would be below one token.

    >>> capacity_of(512, 8, 1.05)
    68
    """
    if min(tokens, experts, multiple) < 1 or not 0 < factor < math.inf:
        raise ConfigError(
            f"tokens, experts, multiple and factor must be positive: {tokens}, {experts}, {multiple}, {factor}"
        )
    share = tokens * factor / experts
    if share < 1:
        raise ConfigError(f"{tokens} tokens times {factor} for {experts} experts leave less than one token for each")
    return min(tokens, -(-math.ceil(share) // multiple) * multiple)


def assign(
    affinity: Tensor,
    k: int,
    *,
    side: str = "experts",
    gamma: float = 1.0,
    steps: int = 20,
    lr: float = 1e-2,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Assignment:
    """Balanced assignment of tokens to experts: every token has mass 1, every expert an equal share of them.

    Args:
        affinity: (G, N, E) or (N, E), larger is better; usually the softmax over experts. No gradient flows: it reaches
            the gate through `Assignment.weights`.
        k: side "experts": the capacity, the most tokens of an expert; side "tokens": the most experts of a token (an
            expert may then hold more than its share, as it is only balanced on average).
        gamma, steps, lr: 1, 20 and 0.01 in the authors' code; Adam from zero potentials, without host synchronisation.
        mask: (G, N) or (N,) bool, False for padding, which is sent nowhere.
        causal: must be False: the assignment of a token depends on all tokens of the group, later ones too.
    Raises:
        ConfigError: k, side or a solver setting cannot be used, or causal. ShapeError: shapes. NumericsError: affinity
        is not finite.
    Source: Liu, Puigcerver and Blondel 2023, section 6; google-research/vmoe.

    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])   # all four like expert 0
    >>> assign(scores, k=2).load.tolist()
    [2, 2]
    """
    if causal:
        raise ConfigError(
            "this router looks at the whole group, so a token's route depends on later ones; causal "
            "decoding needs a router that decides token by token, such as top-k token choice"
        )
    problem, lead = _problem(affinity, mask, side)
    longest = problem.cost.shape[2]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= longest:
        raise ConfigError(f"side={side!r} needs k from 1 to {longest}, got {k!r}")
    if side == "tokens" and mask is not None:
        raise ConfigError("padding can only be masked with side='experts'")
    objective = Objective(problem, k, float(gamma), "semi_dual")
    done = maximise(objective, torch.zeros_like(problem.a), Adam(steps=steps, lr=lr))
    lines = objective.lines(done.x, plan=True).plan
    plan = (lines.mT if side == "experts" else lines).reshape(*lead, *affinity.shape[-2:])
    kept = plan.new_ones(plan.shape[:-1]) if mask is None else mask.expand(plan.shape[:-1]).to(plan)
    error = (plan.sum(-1) - kept).abs().sum(-1) / kept.sum(-1)
    return Assignment(plan, plan > 0, error)


def _problem(affinity: Tensor, mask: Tensor | None, side: str) -> tuple[Problem, torch.Size]:
    """The transport problem of a batch of groups, in float32 also under autocast."""
    if side not in SIDES:
        raise ConfigError(f"side must be 'experts' or 'tokens', got {side!r}")
    if affinity.dim() not in (2, 3) or 0 in affinity.shape:
        raise ShapeError(
            f"affinity must be (groups, tokens, experts) or (tokens, experts), got {tuple(affinity.shape)}"
        )
    lead, (tokens, experts) = affinity.shape[:-2], affinity.shape[-2:]
    if experts > tokens:
        warnings.warn(f"{experts} experts share {tokens} tokens: most of them stay idle", stacklevel=3)
    cost = -affinity.detach().reshape(-1, tokens, experts).float()
    if not torch.compiler.is_compiling() and cost.is_cpu and not bool(torch.isfinite(cost).all()):
        raise NumericsError("affinity holds NaN or infinity; look at the gate's learning rate")
    kept = cost.new_ones(len(cost), tokens)
    if mask is not None:
        if mask.dtype is not torch.bool or mask.shape not in ((tokens,), affinity.shape[:-1]):
            raise ShapeError(f"mask must be bool of shape {tuple(affinity.shape[:-1])}, got {tuple(mask.shape)}")
        kept = mask.expand(affinity.shape[:-1]).reshape(len(cost), tokens).to(cost)
        cost = cost.masked_fill(kept.unsqueeze(-1) == 0, torch.inf)
    share = kept.sum(-1, keepdim=True).expand(-1, experts) / experts
    if side == "experts":
        return Problem(cost.mT.contiguous(), kept, share.contiguous()), lead
    return Problem(cost.contiguous(), share.contiguous(), kept), lead
