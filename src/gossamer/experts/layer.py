"""Stacked experts and the layer that routes tokens to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.experts.dispatch import Dispatch, dispatcher
from gossamer.experts.routing import Router, RoutingPlan

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Experts(nn.Module):
    """E feed-forward networks of one shape, stacked so that one grouped product serves all.

    y = down(act(up x)); gated: y = down(act(gate x) * up x) with gate and up stacked in `up`, as Mixtral's
    `gate_up_proj (E, 2I, H)` and `down_proj (E, H, I)`.

    Args:
        n: experts. width: d. hidden: I. activation: elementwise. gated: SwiGLU-like. bias: of both products.
        dropout: on the hidden units while training; 0.1 in CLIP-MoE's router training, 0 here.
    """

    def __init__(
        self,
        n: int,
        width: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        *,
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(n, width, hidden) < 1:
            raise ConfigError(f"experts need n, width and hidden of at least 1, got {n}, {width}, {hidden}")
        rows = 2 * hidden if gated else hidden
        self.activation, self.gated, self.dropout = activation or nn.GELU(), gated, dropout
        self.up = nn.Parameter(torch.empty(n, rows, width).uniform_(-(width**-0.5), width**-0.5))
        self.down = nn.Parameter(torch.empty(n, width, hidden).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.up_bias = nn.Parameter(torch.zeros(n, rows)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(n, width)) if bias else None

    def run(self, x: Tensor, product: Product) -> Tensor:
        """The networks with `product(h, weight, bias)` in the place of a linear layer: the backends differ in it."""
        h = product(x, self.up, self.up_bias)
        if self.gated:
            gate, h = h.chunk(2, dim=-1)
            h = self.activation(gate) * h
        else:
            h = self.activation(h)
        h = F.dropout(h, self.dropout, self.training)
        return product(h, self.down, self.down_bias)

    def one(self, e: int, x: Tensor) -> Tensor:
        """Expert e on tokens (..., d)."""
        return self.run(x, lambda h, weight, bias: F.linear(h, weight[e], None if bias is None else bias[e]))

    def extra_repr(self) -> str:
        return f"{len(self.up)} x ({self.up.shape[2]} -> {self.down.shape[2]}), gated={self.gated}"


class MoE(nn.Module):
    """A mixture of experts in the place of a feed-forward network: x (..., d) -> (..., d).

    Args:
        experts: the networks.
        router: a policy such as `TopK(2)`; it gets float32 logits, also under autocast.
        dispatch: "grouped" (dropless, default), "padded", "loop", "einsum", or an own function.
        jitter: while training the gate sees x * U(1 - jitter, 1 + jitter) (Fedus et al. 2022).
        per_sequence: (B, S, d) is B groups of S tokens; otherwise all tokens are one group. Only matters for routers
            that look at a group or have a capacity.
    Raises:
        ShapeError: tokens of another width. What the router raises.
    """

    selection_bias: Tensor | None

    def __init__(
        self,
        experts: Experts,
        router: Router,
        *,
        dispatch: str | Dispatch = "grouped",
        jitter: float = 0.0,
        per_sequence: bool = False,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        n, _, width = experts.up.shape
        self.experts, self.router = experts, router
        self.gate = nn.Linear(width, n, bias=False, device=experts.up.device)
        nn.init.normal_(self.gate.weight, std=std)
        self.register_buffer("selection_bias", None)
        self.dispatch = dispatcher(dispatch) if isinstance(dispatch, str) else dispatch
        self.jitter, self.per_sequence = jitter, per_sequence
        self._seen: list[RoutingPlan] | None = None

    def route(self, x: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> RoutingPlan:
        """The plan for tokens (..., d); mask and ids are (...,)."""
        groups = len(x) if self.per_sequence and x.dim() > 2 else 1
        lines = x.reshape(groups, -1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            lines = lines.to(torch.promote_types(x.dtype, torch.float32))
            if self.training and self.jitter > 0:
                lines = lines * torch.empty_like(lines).uniform_(1 - self.jitter, 1 + self.jitter)
            logits = F.linear(lines, self.gate.weight.to(lines.dtype))
        shape = lines.shape[:2]
        return self.router(
            logits,
            None if mask is None else mask.reshape(shape),
            bias=self.selection_bias,
            ids=None if ids is None else ids.reshape(shape),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.gate.in_features:
            raise ShapeError(f"tokens of width {self.gate.in_features} expected, got {tuple(x.shape)}")
        plan = self.route(x, mask, ids)
        if self._seen is not None:
            self._seen.append(plan)
        return self.dispatch(self.experts, x.reshape(-1, x.shape[-1]), plan).view(x.shape)

    def extra_repr(self) -> str:
        return f"router={self.router}"


def moe_layers(model: nn.Module) -> dict[str, MoE]:
    """The expert layers of a model by name, each once. Raises ConfigError where there is none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    if not found:
        raise ConfigError(f"{type(model).__name__} has no expert layer; make some with gossamer.experts.upcycle")
    return found


@contextmanager
def routed(model: nn.Module) -> Iterator[dict[str, list[RoutingPlan]]]:
    """The plans of all forward passes inside the block, by layer: what losses and reports are made of.

    Nothing is kept outside the block, so activation recomputation in a later backward pass is not counted twice.

    >>> from gossamer.experts.routers import TopK
    >>> layer = MoE(Experts(4, 8, 16), TopK(2))
    >>> with routed(layer) as plans:
    ...     y = layer(torch.randn(5, 8))
    >>> int(plans[""][0].counts.sum())
    10
    """
    layers = moe_layers(model)
    plans: dict[str, list[RoutingPlan]] = {name: [] for name in layers}
    before = {name: layer._seen for name, layer in layers.items()}
    for name, layer in layers.items():
        layer._seen = plans[name]
    try:
        yield plans
    finally:
        for name, layer in layers.items():
            layer._seen = before[name]
