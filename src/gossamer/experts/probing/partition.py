"""A feed-forward cut into experts without a new parameter but the router's: which neurons a token needs is chosen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ...kernels.topk import topk_rows
from .calibration import Calibration
from .components import Component, ffn_parts, find_layers, weight_of
from .cuts import Cut, _size, _swap, take


def partition(scores: Tensor, experts: int, shared: float = 0.0) -> tuple[Tensor, Tensor]:
    """(shared neurons (S,), experts' neurons (E, n)): sorted by score, dealt in snake order, so that experts are alike.

    Args:
        scores: (I,). shared: fraction of the neurons that always run, the most important ones.
    Raises:
        ConfigError: the rest does not divide by `experts`; the nearest number that works is named.
    """
    order = scores.argsort(descending=True, stable=True)
    count = int(shared * len(scores))
    rest = order[count:]
    if experts < 1 or len(rest) % experts:
        near = min((e for e in range(1, len(rest) + 1) if len(rest) % e == 0), key=lambda e: abs(e - experts))
        raise ConfigError(f"{len(rest)} neurons cannot be dealt to {experts} experts; {near} would do")
    rows = rest.view(-1, experts).clone()
    rows[1::2] = rows[1::2].flip(1)
    return order[:count].sort().values, rows.T.sort(1).values


class PartitionedFFN(nn.Module):
    """y = sum over the top k experts of (1 + g_e) Expert_e(x), plus (1 + g_s) Shared(x); g = router(x), raw logits.

    Args:
        mlp: a feed-forward with gate/up/down or fc1/fc2 layers. chosen: (E, n) neurons of the experts.
        shared: (S,) neurons that always run. top_k: experts per token.
        noise: standard deviation of the router's initial weights. The released code takes 0: the dense function at
            k = E, but a fixed choice of experts for k < E, since all logits tie.
    Raises:
        ConfigError: k outside 1 ... E.
    Source: He et al. 2025, section on MoE adaptation and released code.
    """

    load: Tensor

    def __init__(
        self, mlp: nn.Module, chosen: Tensor, shared: Tensor, top_k: int, *, noise: float = 1e-3, name: str = "ffn"
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= len(chosen):
            raise ConfigError(f"{name}: top_k must lie in 1 ... {len(chosen)} experts, got {top_k}")
        gate, up, down = ffn_parts(mlp, name)
        weight, bias = weight_of(mlp.get_submodule(down)), mlp.get_submodule(down).bias
        self.top_k, self.activation = top_k, activation_of(mlp, gate)
        parts = {"up": up, "down": down} if gate is None else {"gate": gate, "up": up, "down": down}
        self.experts = nn.ModuleList(_slice(mlp, parts, neurons) for neurons in chosen)
        self.shared = _slice(mlp, parts, shared) if len(shared) else None
        width = len(weight)
        self.router = nn.Linear(width, len(chosen), bias=False).to(weight)
        nn.init.normal_(self.router.weight, std=noise) if noise else nn.init.zeros_(self.router.weight)
        self.shared_gate = nn.Linear(width, 1, bias=False).to(weight) if self.shared is not None else None
        if self.shared_gate is not None:
            nn.init.zeros_(self.shared_gate.weight)
        self.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, Tensor) else None
        self.balance: Tensor | None = None
        self.register_buffer("load", torch.zeros(len(chosen)), persistent=False)

    def _run(self, expert: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(expert, nn.ModuleDict)
        up = expert["up"](x)
        h = self.activation(expert["gate"](x)) * up if "gate" in expert else self.activation(up)
        y: Tensor = expert["down"](h)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d). `balance` holds the Switch loss of this call, `load` the share of tokens per expert."""
        flat = x.reshape(-1, x.shape[-1])
        logits = self.router(flat)
        chosen = topk_rows(logits, self.top_k, name="router logits")
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows = chosen[:, number].nonzero().flatten()
            if len(rows):
                part = self._run(expert, flat[rows]) * (1 + logits[rows, number, None])
                y = y.index_add(0, rows, part)
        if self.shared is not None and self.shared_gate is not None:
            y = y + (1 + self.shared_gate(flat)) * self._run(self.shared, flat)
        share = chosen.float().mean(0)
        self.load = share.detach()
        self.balance = len(self.experts) * (share / self.top_k * logits.softmax(1).mean(0)).sum()
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], -1)


def _slice(mlp: nn.Module, parts: dict[str, str], neurons: Tensor) -> nn.ModuleDict:
    """The feed-forward of some neurons, without the last bias, which is added once."""
    made = {role: take(mlp.get_submodule(name), neurons, int(role == "down")) for role, name in parts.items()}
    made["down"].bias = None  # type: ignore[assignment]
    return nn.ModuleDict(made)


def activation_of(mlp: nn.Module, gate: str | None) -> Callable[[Tensor], Tensor]:
    """The activation: a module or function of a usual name, else SiLU with a gate and GELU without."""
    for name in ("act_fn", "activation_fn", "activation", "act"):
        found = getattr(mlp, name, None)
        if callable(found):
            return found
    return F.silu if gate else F.gelu


def to_moe(
    model: nn.Module,
    component: Component,
    calibration: Calibration,
    experts: int = 16,
    top_k: int = 8,
    *,
    shared: float = 0.0,
    keep_dense: tuple[int, ...] = (0, -1),
    noise: float = 1e-3,
) -> Cut:
    """Every feed-forward of a component as experts; the first and last layer stay dense, as released.

    Args:
        experts, top_k: the released models' 16 and 8 (and 32 and 16). shared: 0 as released.
    Raises:
        ConfigError: a post-norm component, or neurons that cannot be dealt to so many experts. Warns where routers of
            zeros cannot tell experts apart.
    """
    if noise == 0 and top_k < experts:
        warnings.warn(
            f"a router of zeros sends every token to the same {top_k} of {experts} experts; take noise > 0",
            stacklevel=2,
        )
    if component.post:
        raise ConfigError(f"component {component.name!r} has its norms after the additions; only others become experts")
    layers = find_layers(model, component)
    dense = {layers[place].number for place in keep_dense}
    before, undo = _size(model), []
    for layer in layers:
        if layer.number not in dense:
            mlp = model.get_submodule(layer.mlp)
            down = weight_of(mlp.get_submodule(ffn_parts(mlp, layer.mlp)[2])).detach()
            always, chosen = partition(calibration.neurons(layer.number, down), experts, shared)
            new = PartitionedFFN(mlp, chosen, always, top_k, noise=noise, name=layer.mlp)
            undo.append(_swap(model, layer.mlp, new.train(mlp.training)))
    return Cut(model, before - _size(model), f"{component.name}: {top_k} of {experts} experts", undo)


def tune(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    phase: str = "router",
    lr: float = 3e-2,
    balance: float = 1e-3,
) -> nn.Module:
    """Train what `to_moe` made: "router": routers and shared gates alone; "full": experts as well.

    Frozen experts still carry gradients to the layers below (the released code cuts them off).
    Raises:
        ConfigError: another phase, or no partitioned layer.
    """
    layers = [m for m in model.modules() if isinstance(m, PartitionedFFN)]
    if phase not in ("router", "full") or not layers:
        raise ConfigError(
            f"phase is 'router' or 'full' of a model that to_moe made, got {phase!r}, {len(layers)} layers"
        )
    wanted = {
        id(p)
        for m in layers
        for name, p in m.named_parameters()
        if phase == "full" or "router" in name or "_gate" in name
    }
    asked = {p: p.requires_grad for p in model.parameters()}
    for p in asked:
        p.requires_grad_(id(p) in wanted)
    optimizer = torch.optim.AdamW([p for p in asked if id(p) in wanted], lr=lr, weight_decay=0.0)
    model.train()
    try:
        for batch in batches:
            total = loss(model, batch)
            parts = [m.balance for m in layers if m.balance is not None]
            if balance and parts:
                total = total + balance * torch.stack(parts).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    finally:
        for p, value in asked.items():
            p.requires_grad_(value)
    return model
