"""Losses that keep experts in use, as functions of the plans that `routed` collects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError
from gossamer.experts.layer import MoE
from gossamer.experts.routing import RoutingPlan

Plans = Mapping[str, Sequence[RoutingPlan]]


def balance_loss(
    plans: Plans, *, count: Literal["argmax", "picks"] = "argmax", pooled: bool = False, reduce_ranks: bool = False
) -> Tensor:
    """E sum_e f_e P_e, mean over layers: 1 where tokens are spread evenly, E where one expert takes all.

    Args:
        plans: of `routed`.
        count: f_e is the share of tokens whose most probable expert is e ("argmax", CLIP-MoE's text and Switch), or of
            the pairs that were sent to it ("picks"; times k this is transformers' `load_balancing_loss_func`).
        pooled: average f and P over the layers before the product, as CLIP-MoE's code does, which balances only the
            average over depth.
        reduce_ranks: average f and P over the process group before the product.
    Raises:
        ConfigError: no forward pass was recorded; pooled layers with different numbers of experts.
    """
    shares = [_shares(plan, count) for plan in _flat(plans)]
    if reduce_ranks and dist.is_initialized():
        shares = [(_mean_over_ranks(f), _mean_over_ranks(p)) for f, p in shares]
    if not pooled:
        return torch.stack([len(f) * (f * p).sum() for f, p in shares]).mean()
    if len({len(f) for f, _ in shares}) > 1:
        raise ConfigError("pooled balance needs layers with one number of experts; use pooled=False")
    f, p = (torch.stack(part).mean(0) for part in zip(*shares, strict=True))
    return len(f) * (f * p).sum()


def z_loss(plans: Plans) -> Tensor:
    """Mean of logsumexp(logits)^2, which keeps the logits small; usual coefficient 1e-3 (Zoph et al. 2022, eq. 5)."""
    return torch.stack([(real_logits(plan).logsumexp(-1) ** 2).mean() for plan in _flat(plans)]).mean()


def importance_loss(plans: Plans) -> Tensor:
    """(std / mean)^2 over experts of the summed gates; 0 where all weigh the same (Riquelme et al. 2021, A.2)."""

    def spread(plan: RoutingPlan) -> Tensor:
        total = real_logits(plan).softmax(-1).sum(0)
        return total.var(unbiased=False) / total.mean() ** 2

    return torch.stack([spread(plan) for plan in _flat(plans)]).mean()


def update_bias(layer: MoE, plan: RoutingPlan, rate: float = 1e-3) -> None:
    """Raise the selection bias of experts below the mean load and lower that of those above: balance without a loss.

    Call once per step, after the optimiser. The first call makes the bias. Source: Wang et al. 2024 (loss-free).
    """
    load = plan.counts.float()
    if layer.selection_bias is None:
        layer.selection_bias = torch.zeros_like(load)
    layer.selection_bias += rate * torch.sign(load.mean() - load)


def _flat(plans: Plans) -> list[RoutingPlan]:
    found = [plan for layer in plans.values() for plan in layer]
    if not found:
        raise ConfigError("no forward pass was recorded: run the model inside `with routed(model) as plans:`")
    return found


def real_logits(plan: RoutingPlan) -> Tensor:
    """(tokens, E) logits without padding."""
    logits, mask = plan.aux["logits"].flatten(0, 1), plan.aux.get("mask")
    return logits if mask is None else logits[mask.flatten()]


def _shares(plan: RoutingPlan, count: str) -> tuple[Tensor, Tensor]:
    gate = real_logits(plan).softmax(-1)
    if count == "argmax":
        used = F.one_hot(gate.argmax(-1), plan.experts).to(gate).mean(0)
    elif count == "picks":
        used = plan.counts.to(gate) / plan.counts.sum().clamp(min=1)
    else:
        raise ConfigError(f"count must be 'argmax' or 'picks', got {count!r}")
    return used, gate.mean(0)


def _mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over processes; the gradient goes to the own part."""
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / dist.get_world_size() - value).detach()
