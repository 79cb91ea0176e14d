"""Surgery on channels: remove, narrow, permute and widen coupled units, with a plan that rebuilds the result.

All four say for each group which old unit each new unit is; parameters, buffers and layer attributes follow.
In place, parameter objects stay the same while their data change; an optimiser that is handed over follows, too.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from ..errors import CheckpointError, ConfigError, GossamerError, MaskError, ShapeError
from .accounting.flops import quiet
from .channels import ChannelGraph, ChannelGroup, channel_graph
from .export import densify, export_csr, export_dense, export_two_four, make_permanent
from .folding import Fold, fold_constants_, silence_
from .groups import Member

__all__ = [
    "Surgery",
    "apply_shrink_plan",
    "densify",
    "export_csr",
    "export_dense",
    "export_two_four",
    "make_permanent",
    "narrow",
    "permute_channels",
    "remove_channels",
    "widen",
]
PLAN_VERSION = 1
ATTRIBUTES = (
    *("in_channels", "out_channels", "groups", "in_features", "out_features"),
    *("num_features", "num_groups", "num_channels", "embedding_dim", "num_parameters"),
)


@dataclass(frozen=True)
class Surgery:
    """The result of an operation.

    Args:
        model: the changed model, a copy unless it was done in place.
        plan: JSON data for `apply_shrink_plan`: shapes of changed tensors, layer attributes, added biases, and for
            each group which old units its new units are.
        folds: constants of removed channels and where they went.
        difference: largest difference of outputs on the example from the model that computes the same function;
            more than rounding only where a fold is not exact.
    """

    model: nn.Module
    plan: dict[str, Any]
    folds: list[Fold] = field(default_factory=list)
    difference: float = 0.0


def remove_channels(
    model: nn.Module,
    example: Any,
    masks: Mapping[str, Tensor],
    *,
    fold_constants: bool = True,
    inplace: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    graph: ChannelGraph | None = None,
) -> Surgery:
    """Remove channels for good: layers shrink in every tensor that the channels run through.

    A removed channel no longer sees its inputs but still emits a constant, act(shift of its normalisation or bias).
    Folding adds what consumers make of it to their bias, or takes it from the running mean of the normalisation that
    follows. That is exact for linear layers and convolutions without padding; with padding it is exact away from
    the border, and reported in `folds`. Without folding the constant is lost.

    Args:
        example: one input (B, ...) or a tuple of positional arguments; the result is checked on it.
        masks: group name (of `channel_graph`) -> bool unit mask, True = kept. Groups not named stay whole.
        inplace: change `model` itself.
        optimizer: of `model`, in place: its buffers shrink with the parameters, so that training goes on.
        graph: if already traced.
    Raises:
        ConfigError: no such group, or one whose channels must stay (the reason is given).
        MaskError: a group would be emptied. ShapeError: a mask that does not fit its group.
        GossamerError: the result computes another function, as where forward() has sizes written into it.
    Source: Jiang et al. 2022 (MaskSparsity), section 3; folding after 00-sparse-training-algebra.
    """
    _check_optimizer(inplace, optimizer)
    graph = graph or channel_graph(model, example)
    orders = {name: _kept(graph.group(name), mask) for name, mask in masks.items()}
    dropped = {name: ~masks[name].cpu() for name in orders if not bool(masks[name].all())}
    reference = copy.deepcopy(model)
    silence_(reference, graph, dropped, readers=not fold_constants)
    result = model if inplace else copy.deepcopy(model)
    folds: list[Fold] = []
    if fold_constants and dropped:
        folds = fold_constants_(result, reference, graph, dropped, example)
    plan = _reindex(result, graph, orders, [f.layer for f in folds if f.into == "new bias"], optimizer)
    return _checked(result, reference, plan, example, folds)


def narrow(model: nn.Module, example: Any, widths: Mapping[str, int], **options: Any) -> Surgery:
    """Keep the first `widths[group]` units of each named group; options as in `remove_channels`.

    Raises:
        ConfigError: a width outside 1 ... units of the group; else as `remove_channels`.
    """
    graph = options.pop("graph", None) or channel_graph(model, example)
    masks = {}
    for name, width in widths.items():
        units = graph.group(name).numel
        if not 1 <= width <= units:
            raise ConfigError(f"{name} has {units} units and cannot be narrowed to {width}")
        masks[name] = torch.arange(units) < width
    return remove_channels(model, example, masks, graph=graph, **options)


def permute_channels(
    model: nn.Module,
    example: Any,
    orders: Mapping[str, Sequence[int]],
    *,
    inplace: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
) -> Surgery:
    """Re-order units; the function stays the same up to the order of summation.

    Args:
        orders: group name -> for each new unit the old one. The inverse order restores the weights bit for bit.
        inplace, optimizer: as in `remove_channels`.
    Raises:
        ConfigError: no such group, or not a permutation.
    """
    _check_optimizer(inplace, optimizer)
    graph = channel_graph(model, example)
    for name, order in orders.items():
        if sorted(map(int, order)) != list(range(graph.group(name).numel)):
            raise ConfigError(f"the order of {name} is no permutation of its {graph.group(name).numel} units")
    result = model if inplace else copy.deepcopy(model)
    reference = copy.deepcopy(model)
    plan = _reindex(result, graph, {name: [int(u) for u in order] for name, order in orders.items()}, [], optimizer)
    return _checked(result, reference, plan, example, [])


def widen(
    model: nn.Module, example: Any, widths: Mapping[str, int], *, inplace: bool = False, seed: int = 0
) -> Surgery:
    """Add units by doubling random ones; what reads a doubled unit is divided by its number: the function stays.

    Args:
        widths: group name -> number of units afterwards, at least the present one.
        seed: of the choice of units.
    Raises:
        ConfigError: no such group, or a width below the present one.
    Source: Chen et al. 2016 (Net2Net), section 2.2.
    """
    graph = channel_graph(model, example)
    orders = {}
    for name, width in widths.items():
        units = graph.group(name).numel
        if width < units:
            raise ConfigError(f"{name} has {units} units and cannot be widened to {width}; use narrow")
        rng = torch.Generator().manual_seed(seed)
        orders[name] = [*range(units), *torch.randint(units, (width - units,), generator=rng).tolist()]
    result = model if inplace else copy.deepcopy(model)
    reference = copy.deepcopy(model)
    plan = _reindex(result, graph, orders, [])
    return _checked(result, reference, plan, example, [])


def _check_optimizer(inplace: bool, optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is not None and not inplace:
        raise ConfigError("an optimizer follows surgery in place only: pass inplace=True, or make a new optimizer")


def _kept(group: ChannelGroup, mask: Tensor) -> list[int]:
    """The kept units, in order."""
    if tuple(mask.shape) != group.shape:
        raise ShapeError(f"mask of {group.name} has shape {tuple(mask.shape)}, the group has {group.shape} units")
    kept = mask.nonzero().flatten().tolist()
    if not kept:
        raise MaskError(f"all {group.numel} channels of {group.name} would be removed; keep at least one")
    return kept


def _checked(result: nn.Module, reference: nn.Module, plan: dict[str, Any], example: Any, folds: list[Fold]) -> Surgery:
    """Compare outputs on the example."""
    try:
        got, wanted = _run(result, example), _run(reference, example)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise GossamerError(
            f"the changed {type(result).__name__} does not run, perhaps sizes are written into its forward(): {error}"
        ) from error
    difference = 0.0
    for a, b in zip(got, wanted, strict=True):
        gap = float((a - b).abs().max()) if a.numel() else 0.0
        bound = 100 * torch.finfo(b.dtype).eps ** 0.75 * max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        difference = max(difference, gap)
        if not gap <= bound and all(fold.exact for fold in folds):
            raise GossamerError(
                f"surgery changed the outputs of {type(result).__name__} by {gap:.3g}; "
                f"its forward() uses channels in a way that the trace does not show"
            )
    return Surgery(result, plan, folds, difference)


def _run(model: nn.Module, example: Any) -> list[Tensor]:
    with quiet(model):
        output = model(*(example if isinstance(example, tuple) else (example,)))
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


# --------------------------------------------------------------------------- the primitive


def _reindex(
    model: nn.Module,
    graph: ChannelGraph,
    orders: Mapping[str, list[int]],
    biases: list[str],
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """New unit j of a group becomes its old unit orders[group][j], in all tensors. Returns the plan."""
    placements: dict[tuple[str, int], list[tuple[Member, list[int], bool]]] = defaultdict(list)
    for name, order in orders.items():
        group = graph.group(name)
        if order == list(range(group.numel)):
            continue
        roles = (*group.roles, *["statistic"] * len(group.buffers))
        for member, role in zip((*group.members, *group.buffers), roles, strict=True):
            placements[member.name, member.dim or 0].append((member, order, role == "in"))
    for layer in biases:  # a bias that folding added follows its weight
        placements[f"{layer}.bias", 0] = list(placements.get((f"{layer}.weight", 0), ()))
    for (name, dim), places in placements.items():
        tensor = _tensor(model, name)
        state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
        _rearrange(
            tensor, dim, places, [b for b in state.values() if isinstance(b, Tensor) and b.shape == tensor.shape]
        )
    owners = sorted({name.rpartition(".")[0] for name, _ in placements})
    changed = sorted({name for name, _ in placements} | {f"{layer}.bias" for layer in biases})
    return {
        "version": PLAN_VERSION,
        "tensors": {name: list(_tensor(model, name).shape) for name in changed},
        "attributes": {path: found for path in owners if (found := _refresh(model.get_submodule(path)))},
        "biases": sorted(biases),
        "units": {name: list(order) for name, order in orders.items()},
    }


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, attr = name.rpartition(".")
    return getattr(model.get_submodule(path), attr)


@torch.no_grad()
def _rearrange(tensor: Tensor, dim: int, places: list[tuple[Member, list[int], bool]], buffers: list[Tensor]) -> None:
    """Write positions anew along `dim`, in the tensor object itself and in the optimiser's buffers of it."""
    sources, scale = _sources(tensor.shape[dim], places)
    shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
    chosen = torch.tensor(sources, device=tensor.device)
    for buffer in buffers:
        buffer.data = buffer.index_select(dim, chosen)
    fresh = tensor.detach().index_select(dim, chosen)
    if any(s != 1 for s in scale):
        fresh = fresh * torch.tensor(scale, dtype=fresh.dtype, device=fresh.device).view(shape)
    tensor.data = fresh
    tensor.grad = None


def _sources(size: int, places: list[tuple[Member, list[int], bool]]) -> tuple[list[int], list[float]]:
    """For each new position the old one and a factor. New units go behind the last old one, run by run."""
    content: list[int | None] = list(range(size))
    behind: dict[int, list[int]] = defaultdict(list)
    factor: dict[int, float] = {}
    for member, order, reads in places:
        index = member.index if member.index is not None else torch.arange(size)[:, None]
        rows: list[list[int]] = index.tolist()
        counts = Counter(order)
        for j, row in enumerate(rows):
            for position, source in zip(row, rows[order[j]] if j < len(order) else row, strict=True):
                content[position] = source if j < len(order) else None
        for source_unit in order[len(rows) :]:
            for end, run in _runs(rows[-1], rows[source_unit]):
                behind[end].extend(run)
        if reads:
            factor.update((p, 1 / counts[u]) for u, row in enumerate(rows) if counts[u] > 1 for p in row)
    sources: list[int] = []
    for position, kept in enumerate(content):
        sources += ([] if kept is None else [kept]) + behind[position]
    return sources, [factor.get(source, 1.0) for source in sources]


def _runs(last: list[int], source: list[int]) -> list[tuple[int, list[int]]]:
    """`source` cut where the positions of the last unit are not consecutive, each piece with the place before it."""
    out: list[tuple[int, list[int]]] = []
    run: list[int] = []
    for k, (place, position) in enumerate(zip(last, source, strict=True)):
        run.append(position)
        if k + 1 == len(last) or last[k + 1] != place + 1:
            out.append((place, run))
            run = []
    return out


def _refresh(module: nn.Module) -> dict[str, int]:
    """Set the attributes of a layer by the shapes of its tensors; returns them."""
    found: dict[str, int] = {}
    if isinstance(module, _ConvTransposeNd):
        found = {"in_channels": module.weight.shape[0], "out_channels": module.weight.shape[1]}
    elif isinstance(module, _ConvNd) and module.groups == 1:
        found = {"in_channels": module.weight.shape[1], "out_channels": module.weight.shape[0]}
    elif isinstance(module, _ConvNd):
        inputs = module.weight.shape[0] * module.groups // module.out_channels
        found = {"in_channels": inputs, "groups": inputs, "out_channels": module.weight.shape[0]}
    elif isinstance(module, nn.Linear):
        found = {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    elif isinstance(module, _NormBase):
        kept = module.running_mean if module.running_mean is not None else module.weight
        found = {"num_features": len(kept)}
    elif isinstance(module, nn.GroupNorm):
        size = module.num_channels // module.num_groups
        found = {"num_channels": len(module.weight), "num_groups": len(module.weight) // size}
    elif isinstance(module, nn.Embedding):
        found = {"embedding_dim": module.weight.shape[1]}
    elif isinstance(module, nn.PReLU):
        found = {"num_parameters": len(module.weight)}
    for name, value in found.items():
        setattr(module, name, value)
    return found


# --------------------------------------------------------------------------- plans


@torch.no_grad()
def apply_shrink_plan(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Give a freshly built model the shapes of a plan, in place, so that the changed weights load into it.

    Values of reshaped tensors are zero afterwards: load the state dict that belongs to the plan.

    Raises:
        CheckpointError: another version, or a plan of another model (the tensor or layer is named).
    """
    if plan.get("version") != PLAN_VERSION:
        raise CheckpointError(f"shrink plan has version {plan.get('version')!r}, this is {PLAN_VERSION}")
    try:
        biases, tensors, attributes = list(plan["biases"]), dict(plan["tensors"]), dict(plan["attributes"])
        for layer in biases:
            module = model.get_submodule(layer)
            weight = _tensor(model, f"{layer}.weight")
            module.register_parameter("bias", nn.Parameter(weight.new_zeros(1)))
        for name, shape in tensors.items():
            _reshape(model, name, shape, added=name.removesuffix(".bias") in biases)
        for path, values in attributes.items():
            module = model.get_submodule(path)
            for name, value in values.items():
                if name not in ATTRIBUTES or not isinstance(getattr(module, name, None), int) or int(value) < 1:
                    raise CheckpointError(f"shrink plan sets {path}.{name} = {value!r}, which no layer has")
                setattr(module, name, int(value))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"shrink plan does not belong to this {type(model).__name__}: {error}") from error
    return model


def _reshape(model: nn.Module, name: str, shape: Sequence[int], added: bool) -> None:
    tensor = _tensor(model, name)
    fits = len(shape) == tensor.ndim and all(type(n) is int and 1 <= n < 2**31 for n in shape)
    if not fits:
        raise CheckpointError(f"shrink plan gives {name} the shape {list(shape)}, the model has {tuple(tensor.shape)}")
    fixed_dims = range(2, tensor.ndim)
    if not added and any(shape[d] != tensor.shape[d] for d in fixed_dims):
        raise CheckpointError(f"shrink plan changes the kernel of {name} to {list(shape)}, it is {tuple(tensor.shape)}")
    tensor.data = tensor.new_zeros(shape)
