"""Transform a whole network: same FLOPs, larger layers, and the densities that make it so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, unknown
from ...models.replace import replace
from ...recipes import rigl, set_
from ...sparsify.accounting import Flops, flops
from ...sparsify.allocation import Given
from ...sparsify.channels import channel_graph
from ...sparsify.groups import Select, select
from ...sparsify.patterns import Pattern
from ...sparsify.recipe import Recipe
from ...sparsify.scores import Random
from ...sparsify.surgery import widen
from ...sparsify.updates import SetTo
from .layers import Doped, Factorized, Parallel, dimensions
from .memory import activations
from .sizes import check_sparsity, wide_width

FAMILIES = ("wide", "parallel", "factorized", "doped")


@dataclass(frozen=True)
class IsoFlop:
    """A transformed network.

    Args:
        model: the larger network, dense until a recipe masks it.
        counts: weight -> how many of its entries are kept.
        family, sparsity: what was asked for.
        before, after: FLOPs of one sample in the original and in this network, by weight, before masking.
        parameters: of the original. activations: of one sample in the original and in this network.
    """

    model: nn.Module
    counts: dict[str, int]
    family: str
    sparsity: float
    before: Flops
    after: Flops
    parameters: int
    activations: tuple[int, int]

    @property
    def densities(self) -> dict[str, float]:
        """Weight -> kept fraction."""
        weights = dict(self.model.named_parameters())
        return {name: count / weights[name].numel() for name, count in self.counts.items()}

    @property
    def density(self) -> float:
        """Kept fraction of all masked weights."""
        weights = dict(self.model.named_parameters())
        return sum(self.counts.values()) / sum(weights[name].numel() for name in self.counts)

    @property
    def ratio(self) -> float:
        """FLOPs of this network at its densities over those of the original."""
        return self.after.at(self.densities) / self.before.dense

    def table(self) -> list[dict[str, Any]]:
        """Rows for people: the dense and the transformed network; equal FLOPs cost parameters and activations."""
        weights = dict(self.model.named_parameters())
        total = sum(p.numel() for p in weights.values())
        zeros = sum(weights[name].numel() - count for name, count in self.counts.items())
        columns = ("network", "mega FLOPs", "non-zeros", "parameters", "activations")
        cost, (few, many) = self.after.at(self.densities) / 1e6, self.activations
        dense = ("dense", self.before.dense / 1e6, self.parameters, self.parameters, few)
        sparse = (f"{self.family}, {self.sparsity:g}", cost, total - zeros, total, many)
        return [dict(zip(columns, row, strict=True)) for row in (dense, sparse)]


def iso_flop(
    model: nn.Module,
    family: str,
    sparsity: float,
    example: Any,
    *,
    exclude: tuple[str, ...] = (),
    first_dense: bool = True,
    last_dense: bool = True,
    seed: int = 0,
    **options: Any,
) -> IsoFlop:
    """A copy of `model` whose layers are larger and sparse, at the FLOPs of the dense one.

    Args:
        model: linear layers and 2-D convolutions are transformed. family: one of FAMILIES.
        sparsity: s in [0, 1); the paper takes 0.5, 0.75, 0.9.
        example: one input (B, ...) or a tuple of arguments.
        exclude: shell patterns over weight names that stay as they are.
        first_dense, last_dense: leave out the stem and the classifier, as the authors do.
        seed: of the new initial weights.
        options: of the family's layer: `between` (factorized), `norm` and `relu` (parallel).
    Raises:
        ConfigError: an unknown family, a sparsity out of range or one that the family cannot have, a layer that
            cannot be transformed, or dense parts that alone exceed the budget.
    Source: Thangarasa et al. 2024. Wide networks get one density for all masked layers, solved so that the whole
    network costs what the dense one did; the authors search for it by bisection.
    """
    if family not in FAMILIES:
        raise unknown("iso-FLOP family", family, FAMILIES)
    check_sparsity(sparsity)
    chosen = Select(exclude=exclude, first_dense=first_dense, last_dense=last_dense)
    before = flops(model, example, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "wide":
            made, counts = _wide(model, sparsity, example, chosen, before)
        else:
            made, counts = _replaced(model, family, sparsity, example, chosen, options)
    parameters = sum(p.numel() for p in model.parameters())
    kept = activations(model, example), activations(made, example)
    return IsoFlop(made, counts, family, sparsity, before, flops(made, example, {}), parameters, kept)


def _wide(
    model: nn.Module, sparsity: float, example: Any, chosen: Select, before: Flops
) -> tuple[nn.Module, dict[str, int]]:
    """Every coupled group of channels gets wider; one density for all masked layers closes the budget."""
    widths = {g.name: wide_width(g.numel, sparsity) for g in channel_graph(model, example).groups}
    wider = widen(model, example, widths).model if any(widths) else copy.deepcopy(model)
    if sparsity > 0:
        initialise(wider)
    rows = {row.name: row.dense for row in flops(wider, example, {}).layers}
    masked = {group.name: group.numel for group in select(wider, chosen)}
    rest = sum(cost for name, cost in rows.items() if name not in masked)
    room, cost = before.dense - rest, sum(rows.get(name, 0.0) for name in masked)
    if room <= 0:
        raise ConfigError(
            f"wide: the dense parts of the wider network cost {rest:.4g} FLOPs, more than the budget of "
            f"{before.dense:.4g}; lower the sparsity or mask the first and last layer too (first_dense=False)"
        )
    density = min(1.0, room / cost)
    return wider, _shares({name: density * numel for name, numel in masked.items()})


def _shares(wanted: dict[str, float]) -> dict[str, int]:
    """Whole numbers near `wanted` whose sum is the rounded sum (largest remainder)."""
    counts = {name: int(value + 1e-9) for name, value in wanted.items()}
    short = round(sum(wanted.values())) - sum(counts.values())
    for name in sorted(wanted, key=lambda n: counts[n] - wanted[n])[:short]:
        counts[name] += 1
    return counts


def _replaced(
    model: nn.Module, family: str, sparsity: float, example: Any, chosen: Select, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, int]]:
    """Every chosen layer is replaced by its larger stand-in; kept weights cost exactly what the layer did."""
    make: dict[str, Callable[..., Any]] = {"parallel": Parallel, "factorized": Factorized, "doped": Doped}
    result = copy.deepcopy(model)
    names = {group.name.removesuffix(".weight") for group in select(result, chosen)}
    followed = _followed(model, example) if family == "parallel" and options.get("norm", True) else {}
    counts: dict[str, int] = {}

    def factory(name: str, layer: nn.Module) -> nn.Module | None:
        if name not in names:
            return None
        inputs, outputs, taps = dimensions(layer, name)
        given = dict(options)
        if family == "parallel" and name not in followed:
            given["norm"] = False  # where the dense layer has no normalisation, its branches have none
        new: Parallel | Factorized | Doped = make[family](layer, sparsity, **given)
        budget = taps * inputs * outputs
        if isinstance(new, Doped):
            budget -= new.u.weight.numel() + new.v.weight.numel()
        parts = {f"{name}.{key}": w.numel() for key, w in new.sparse_weights().items()}
        share = min(1.0, budget / sum(parts.values()))
        counts.update(_shares({key: share * numel for key, numel in parts.items()}))
        return new.to(next(layer.parameters()).device)

    replace(result, (nn.Linear, nn.Conv2d), factory)
    for name, norm in followed.items():
        if name in names:
            parent, _, leaf = norm.rpartition(".")
            setattr(result.get_submodule(parent), leaf, nn.Identity())
    return result, counts


def _followed(model: nn.Module, example: Any) -> dict[str, str]:
    """Layer -> the batch normalisation that alone reads its output."""
    pairs = channel_graph(model, example).followed
    return {weight.removesuffix(".weight"): mean.removesuffix(".running_mean") for weight, mean in pairs.items()}


def initialise(model: nn.Module) -> None:
    """Fresh weights as the layers' own classes draw them: a doubled unit must not stay its twin's copy."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def iso_recipe(
    iso: IsoFlop, method: str = "rigl", *, scale_init: bool = True, pattern: Pattern | None = None, **options: Any
) -> Recipe:
    """The recipe that trains a transformed network with exactly its densities.

    Args:
        method: "rigl", "set" or "static". options: of the recipe, such as `every`.
        scale_init: divide initial weights by the root of the density (offered but unused in the released code).
        pattern: of the masks, such as NM(1, 4); one with a fixed count must keep what equal FLOPs allow, which 1:4 does
            for the parallel family at 75 %, and can only be static.
    Raises:
        ConfigError: an unknown method, a pattern that keeps another number of weights (the first is named) or moves.
    """
    table = Given(tuple(iso.densities.items()))
    makers: dict[str, Callable[..., Recipe]] = {
        "rigl": lambda **given: rigl(1 - iso.density, allocation=table, **given),
        "set": lambda **given: set_(1 - iso.density, allocation=table, **given),
        "static": lambda: Recipe("static", updates=(SetTo(Random(), iso.density, table),)),
    }
    if method not in makers:
        raise unknown("method", method, makers)
    made = makers[method](**options).replace(
        select=Select(only=tuple(iso.counts)), scale_init=scale_init, name=f"{iso.family}-{method}"
    )
    if pattern is None:
        return made
    _check_pattern(iso, pattern, method)
    return made.replace(pattern=pattern)


def _check_pattern(iso: IsoFlop, pattern: Pattern, method: str) -> None:
    weights = dict(iso.model.named_parameters())
    for name, count in iso.counts.items():
        fixed = pattern.fixed(tuple(weights[name].shape))
        if fixed is not None and method != "static":
            raise ConfigError(f"{pattern} keeps a fixed number in every group, so its masks do not move: take 'static'")
        if fixed not in (None, count):
            raise ConfigError(f"{pattern} keeps {fixed} weights of {name}, but equal FLOPs allow {count}")


def same_cost(iso: IsoFlop) -> bool:
    """Whether FLOPs agree up to the rounding of one weight in every masked layer."""
    costs = {row.name: row.dense for row in iso.after.layers}
    weights: dict[str, Tensor] = dict(iso.model.named_parameters())
    slack = sum(costs[name] / weights[name].numel() for name in iso.counts)
    return abs(iso.after.at(iso.densities) - iso.before.dense) <= slack
