"""Mixtures of experts: routers, stacked experts, losses, sparse upcycling, and experts over several processes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "routing": ("RoutingPlan", "Router"),
    "routers": ("TopK", "ExpertChoice", "Transport", "Sinkhorn", "Hash"),
    "ffn": ("find_ffn", "stack"),
    "layer": ("Experts", "MoE", "moe_layers", "routed"),
    "losses": ("balance_loss", "importance_loss", "update_bias", "z_loss"),
    "upcycling": ("upcycle", "upcycle_from", "active_parameters", "check_shared", "identical"),
    "clusters": ("accumulate", "cluster", "cluster_batches"),
    "contrastive": ("TensorPairs", "Training", "clip_loss", "embed", "stages", "train_pairs", "train_routers"),
    "evaluate": ("moe_report", "recall", "zero_shot"),
    "hf": ("dense_clip", "encode_clip", "load", "save"),
    "layouts": ("adopt", "to_mixtral"),
    "loose": ("gather",),
    "padding": ("masked",),
    "plot": ("plot_report",),
    "parallel": ("expert_parameters", "shard", "unshard"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
