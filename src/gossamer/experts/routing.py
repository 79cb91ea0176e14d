"""The contract between routers and expert layers: which token goes to which expert, and with which weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError


@dataclass(frozen=True, eq=False)
class RoutingPlan:
    """P pairs of a token and an expert, for G groups of N tokens and E experts.

    Attributes:
        token: (P,) int64, index into the G * N flattened tokens; sorted. expert: (P,) int64.
        weight: (P,) float32, what the expert's output is multiplied with; carries the gate's gradient.
        counts: (E,) int64, pairs of each expert.
        dropped: (G, N) bool, tokens that wanted an expert and got none: the layer's output is 0 there. Padding is not
            among them.
        aux: "logits" (G, N, E) float32 with graph, "mask" (G, N) bool where padding was given, and what a router adds.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    counts: Tensor
    dropped: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """G * N, padding included."""
        return self.dropped.numel()

    @property
    def experts(self) -> int:
        return len(self.counts)

    def dense(self) -> Tensor:
        """(G * N, E) weights, 0 where there is no pair."""
        flat = self.weight.new_zeros(self.tokens * self.experts)
        return flat.index_add(0, self.token * self.experts + self.expert, self.weight).view(-1, self.experts)


class Router(Protocol):
    """A policy without parameters; the gate that makes the logits belongs to the layer."""

    def __call__(
        self, logits: Tensor, mask: Tensor | None = None, *, bias: Tensor | None = None, ids: Tensor | None = None
    ) -> RoutingPlan:
        """Route (G, N, E) float32 logits.

        Args:
            mask: (G, N) bool, False for padding, which is sent nowhere and counted nowhere.
            bias: (E,) added to the scores when experts are selected, not in the weights. ids: (G, N) int64 token ids.
        """
        ...


def check(logits: Tensor, mask: Tensor | None) -> None:
    """Raise ShapeError, ConfigError (half precision) or NumericsError for what no router can use."""
    if logits.dim() != 3 or 0 in logits.shape[2:]:
        raise ShapeError(f"router logits must be (groups, tokens, experts), got {tuple(logits.shape)}")
    if logits.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"router logits are {logits.dtype}: routing in half precision is unstable; compute the gate in float32"
        )
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != logits.shape[:2]):
        raise ShapeError(f"mask must be bool of shape {tuple(logits.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if not torch.compiler.is_compiling() and logits.is_cpu and not bool(torch.isfinite(logits).all()):
        raise NumericsError(
            "router logits hold NaN or infinity: the activations before this layer or its gate have diverged; "
            "lower the learning rate or look for the first layer with such values"
        )


def plan_of(
    chosen: Tensor, weights: Tensor, logits: Tensor, mask: Tensor | None, aux: dict[str, Tensor] | None = None
) -> RoutingPlan:
    """The plan with the pairs where `chosen` (G, N, E) is true, at the weights (G, N, E); padding is removed here."""
    if mask is not None:
        chosen = chosen & mask.unsqueeze(-1)
    left = ~chosen.any(-1)
    dropped = left if mask is None else left & mask
    token, expert = chosen.flatten(0, 1).nonzero(as_tuple=True)
    weight = weights.flatten(0, 1)[token, expert]
    return RoutingPlan(token, expert, weight, chosen.sum((0, 1)), dropped, facts(logits, mask) | (aux or {}))


def facts(logits: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """What every plan carries for the losses."""
    return {"logits": logits} if mask is None else {"logits": logits, "mask": mask}


def capacity(tokens: int, experts: int, factor: float, k: int = 1, multiple: int = 1) -> int:
    """ceil(tokens * k * factor / experts), rounded up to a multiple, at most all tokens.

    Raises:
        ConfigError: a factor that is not positive and finite (it would leave experts without tokens).

    >>> capacity(100, 8, 1.25, k=2)
    32
    """
    check_factor(factor, multiple)
    share = math.ceil(tokens * k * factor / experts)
    return min(tokens, -(-share // multiple) * multiple)


def check_factor(factor: float, multiple: int = 1) -> None:
    """Raise ConfigError unless a capacity can be made of these."""
    if isinstance(factor, bool) or not 0 < factor < math.inf or multiple < 1:
        raise ConfigError(
            f"the capacity factor must be positive and finite and multiple at least 1, got {factor!r}, {multiple!r}: "
            "with capacity 0 no token reaches an expert; None means no limit where a router allows it"
        )


def check_whole_group(name: str, causal: bool) -> None:
    """Refuse a router that looks at the whole group in a causal decoder."""
    if causal:
        raise ConfigError(
            f"{name} decides with a view of all tokens of the group, so a token's route would depend on later ones; "
            "causal decoding needs a router that decides token by token, such as TopK"
        )
