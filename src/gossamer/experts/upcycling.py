"""Dense models to mixtures of experts: copies, noisy copies, partial re-initialisation, slices, or several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.errors import CheckpointError, ConfigError, unknown
from gossamer.experts.ffn import find_ffn, stack
from gossamer.experts.layer import Experts, MoE, moe_layers
from gossamer.experts.loose import gather
from gossamer.experts.routers import TopK
from gossamer.experts.routing import Router

Init = Literal["copy", "noise", "drop", "slices"]
INITS = ("copy", "noise", "drop", "slices")


def upcycle(
    model: nn.Module,
    names: Sequence[str] | str | None = None,
    *,
    n_experts: int = 4,
    router: Router = TopK(2),
    init: Init = "copy",
    noise: float = 0.01,
    ratio: float = 0.5,
    slices: int = 2,
    last: int | None = None,
    dispatch: str = "grouped",
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Turn feed-forward networks into mixtures of n experts, in place (Komatsuzaki et al. 2023).

    With init "copy" or "slices" and a router whose weights sum to 1 the model computes what it did before.

    Args:
        model: any torch model. names: list of names, a pattern for `find_ffn`, or None for all networks.
        init: "copy"; "noise": plus normal noise of `noise` times each tensor's standard deviation; "drop": each expert
            draws a share `ratio` of its hidden units anew from the tensor's mean and deviation (Nakamura et al. 2025);
            "slices": n_experts / slices copies, each cut in `slices` slices of hidden units whose gate rows start
            equal, so that all slices of a copy are chosen together (He et al. 2024, virtual groups); k must be a
            multiple of `slices`.
        last: only the last so many networks of each tower. seed: of gates, noise and draws.
    Returns:
        the model.
    Raises:
        ConfigError: nothing matches, k > n_experts, an unknown init, counts that do not divide.
        ShapeError: a network that cannot be stacked.
    """
    found = _named(model, names, last)
    if init not in INITS:
        raise ConfigError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    _check(router, n_experts, init, slices)
    gather(model, found)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in found:
            dense = model.get_submodule(name)
            experts = stack([dense] * (n_experts // slices if init == "slices" else n_experts), dropout)
            if init == "noise":
                _add_noise(experts, noise)
            elif init == "drop":
                _redraw(experts, ratio)
            elif init == "slices":
                experts = _cut(experts, slices)
            layer = put(model, name, experts, router, dispatch)
            if init == "slices":
                layer.gate.weight.data = layer.gate.weight.data[::slices].repeat_interleave(slices, dim=0)
    return model


def upcycle_from(
    models: Sequence[nn.Module],
    names: Sequence[str] | str | None = None,
    *,
    router: Router = TopK(2),
    last: int | None = None,
    dispatch: str = "grouped",
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """One mixture from several models that differ in their feed-forward networks only; changes and returns the first.

    Args:
        models: the base model and the stages; expert j of every layer is that of models[j]. dropout: 0.1 in CLIP-MoE
            while the routers train.
    Raises:
        ConfigError: less than two models, k > number of models. CheckpointError: another architecture, or weights
        outside the networks that differ (the first such tensor and its largest difference are named).
        ShapeError: networks of unlike shape.
    Source: Zhang et al. 2024 (CLIP-MoE), section 3.
    """
    if len(models) < 2:
        raise ConfigError(f"needs at least two models to make a mixture of, got {len(models)}")
    base = models[0]
    found = _named(base, names, last)
    _check(router, len(models), "copy", 1)
    for model in models:
        gather(model, found)
    for number, other in enumerate(models[1:], start=1):
        check_shared(base, other, found, number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in found:
            put(base, name, stack([model.get_submodule(name) for model in models], dropout), router, dispatch)
    return base


def _named(model: nn.Module, names: Sequence[str] | str | None, last: int | None) -> list[str]:
    if names is None or isinstance(names, str):
        return find_ffn(model, names, last)
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise unknown(f"module of {type(model).__name__}", name, find_ffn(model))
    return list(names)


def put(model: nn.Module, name: str, experts: Experts, router: Router, dispatch: str = "grouped") -> MoE:
    """Set a new expert layer in the place of a network."""
    old = model.get_submodule(name)
    layer = MoE(experts, router, dispatch=dispatch).train(old.training)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


def check_shared(base: nn.Module, other: nn.Module, names: Sequence[str], number: int = 1) -> None:
    """Check that all tensors outside the named networks are equal. Raises CheckpointError."""
    inside = tuple(f"{name}." for name in names)
    mine, theirs = base.state_dict(), other.state_dict()
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())[0]
        raise CheckpointError(f"model {number} is of another architecture: only one of the two has {odd!r}")
    for name, value in mine.items():
        if value.shape != theirs[name].shape and not name.startswith(inside):
            shapes = tuple(value.shape), tuple(theirs[name].shape)
            raise CheckpointError(f"model {number} is of another architecture: {name} is {shapes[0]} and {shapes[1]}")
        if not name.startswith(inside) and not torch.equal(value, theirs[name]):
            gap = float((value.float() - theirs[name].float()).abs().max())
            raise CheckpointError(
                f"model {number} differs outside the feed-forward networks: first in {name}, by at most {gap:.3g}; "
                "freeze all but the networks while a stage trains"
            )


def identical(layer: MoE) -> bool:
    """Whether all experts of a layer hold the same weights."""
    return all(bool((p == p[:1]).all()) for p in layer.experts.parameters())


def active_parameters(model: nn.Module) -> tuple[int, int]:
    """(parameters that one token uses, all parameters): shared ones plus k / E of the experts'."""
    total = sum(p.numel() for p in model.parameters())
    active = total
    for layer in moe_layers(model).values():
        held, n = sum(p.numel() for p in layer.experts.parameters()), len(layer.experts.up)
        used = getattr(layer.router, "k", None) or min(n, getattr(layer.router, "capacity_factor", 1.0))
        active -= round(held * (1 - used / n))
    return active, total


def _check(router: Router, n: int, init: str, slices: int) -> None:
    k = getattr(router, "k", 1)
    if n < 2 or k > n:
        raise ConfigError(f"a mixture needs at least 2 experts and k of them at most, got {n} experts and k={k}")
    if init == "slices" and (slices < 2 or n % slices or k % slices or not getattr(router, "renormalise", False)):
        raise ConfigError(
            f"slices need TopK with renormalise=True, and n_experts={n} and k={k} divisible by slices={slices} >= 2"
        )


@torch.no_grad()
def _add_noise(experts: Experts, share: float) -> None:
    if not 0 < share < float("inf"):
        raise ConfigError(f"noise is a positive share of the weights' deviation, got {share}")
    for p in experts.parameters():
        p.add_(share * p[0].std() * torch.randn_like(p))


@torch.no_grad()
def _redraw(experts: Experts, ratio: float) -> None:
    """Draw units anew in up (rows; gate and up together), its bias, and down (columns)."""
    if not 0 < ratio <= 1:
        raise ConfigError(f"ratio is the share of units drawn anew, in (0, 1], got {ratio}")
    hidden = experts.down.shape[2]
    halves = 2 if experts.gated else 1
    for e in range(len(experts.up)):
        units = torch.randperm(hidden)[: round(ratio * hidden)]
        rows = torch.cat([units + half * hidden for half in range(halves)])
        experts.up[e, rows] = _like(experts.up[e], (len(rows), experts.up.shape[2]))
        experts.down[e][:, units] = _like(experts.down[e], (experts.down.shape[1], len(units)))
        if experts.up_bias is not None:
            experts.up_bias[e, rows] = _like(experts.up_bias[e], (len(rows),))


def _like(weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    return weights.mean() + weights.std() * torch.randn(shape, device=weights.device, dtype=weights.dtype)


@torch.no_grad()
def _cut(experts: Experts, slices: int) -> Experts:
    """Cut each expert in slices; `down` is scaled so that slices of equal weight that sum to 1 give the whole."""
    n, width, hidden = experts.down.shape
    if hidden % slices:
        raise ConfigError(f"{hidden} hidden units cannot be cut in {slices} equal slices")
    part, halves = hidden // slices, 2 if experts.gated else 1
    small = Experts(
        n * slices, width, part, experts.activation, gated=experts.gated, bias=experts.up_bias is not None,
        dropout=experts.dropout,
    ).to(experts.up)  # fmt: skip

    def rows(p: Tensor) -> Tensor:
        split = p.reshape(n, halves, slices, part, *p.shape[2:]).transpose(1, 2)
        return split.reshape(n * slices, halves * part, *p.shape[2:])

    small.up.copy_(rows(experts.up))
    small.down.copy_(experts.down.view(n, width, slices, part).transpose(1, 2).flatten(0, 1) * slices)
    if small.up_bias is not None and experts.up_bias is not None:
        small.up_bias.copy_(rows(experts.up_bias))
        small.down_bias.copy_(experts.down_bias.repeat_interleave(slices, dim=0))  # type: ignore[union-attr]
    return small
