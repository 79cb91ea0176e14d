"""Groups: what a mask is a mask of.

A `Group` has units (the things that are kept or dropped together) and members (the tensors these units live in).
A plain weight is a group with one member whose units are its entries; a coupled channel group, an attention head or
an FFN neuron is a group with several members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError, unknown
from .gates import Gate

LAYERS: dict[str, type[nn.Module] | tuple[type[nn.Module], ...]] = {
    "linear": nn.Linear,
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "attention": nn.MultiheadAttention,
    "embedding": nn.Embedding,
    "gate": Gate,
}


@dataclass(frozen=True)
class Member:
    """One tensor that a group lives in.

    Args:
        name: the parameter's name in the model.
        dim: the dimension that holds the units; None: the units are the entries themselves.
        index: (units, k) long: the k positions along `dim` of each unit; None: unit u is position u.
        rows: with dim None: only these rows of the tensor (a block of a fused attention weight).
    """

    name: str
    dim: int | None = None
    index: Tensor | None = field(default=None, compare=False)
    rows: tuple[int, int] | None = None

    def reduce(self, values: Tensor) -> Tensor:
        """Mean of `values` (shape of the parameter) over each unit; the values themselves where units are entries."""
        if self.dim is None:
            return values if self.rows is None else values[self.rows[0] : self.rows[1]]
        flat = values.movedim(self.dim, 0).flatten(1) if values.ndim > 1 else values[:, None]
        per_position = flat.mean(1)
        return per_position if self.index is None else per_position[self.index].mean(1)

    def write(self, units: Tensor, mask: Tensor) -> None:
        """Clear in `mask` (bool, shape of the parameter) what the unit mask `units` drops."""
        if self.dim is None:
            target = mask if self.rows is None else mask[self.rows[0] : self.rows[1]]
            target.logical_and_(units)
            return
        keep = units
        if self.index is not None:
            keep = torch.ones(mask.shape[self.dim], dtype=torch.bool, device=mask.device)
            keep[self.index[~units].flatten()] = False
        mask.logical_and_(keep.view([-1 if d == self.dim % mask.ndim else 1 for d in range(mask.ndim)]))


@dataclass(frozen=True)
class Group:
    """Units that a pattern, score and schedule act on. `shape` is the shape of the unit mask."""

    name: str
    shape: tuple[int, ...]
    members: tuple[Member, ...]

    @property
    def numel(self) -> int:
        """How many units there are."""
        return torch.Size(self.shape).numel()

    @property
    def is_weight(self) -> bool:
        """Whether the units are the entries of one whole tensor."""
        return len(self.members) == 1 and self.members[0].dim is None and self.members[0].rows is None

    def reduce(self, values: Callable[[str], Tensor]) -> Tensor:
        """Unit scores from entry scores: mean over each unit's entries, then mean over members."""
        parts = [member.reduce(values(member.name)) for member in self.members]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


@dataclass(frozen=True)
class Select:
    """Which weights may become sparse: a value, applied to a model by `select`.

    Args:
        layers: kinds of layer, of LAYERS. Biases, norms, embeddings and positions are never selected by default.
        only, exclude: shell patterns over parameter names.
        min_numel: smaller weights stay dense.
        first_dense, last_dense: leave out the first / last selected weight in registration order.
        split_attention: fused q/k/v projections become three groups.
    """

    layers: tuple[str, ...] = ("linear", "conv", "gate")
    only: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    min_numel: int = 1
    first_dense: bool = False
    last_dense: bool = False
    split_attention: bool = False


def _candidates(model: nn.Module, layers: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of every weight of the chosen layer kinds, in registration order, tied ones once."""
    kinds: list[type[nn.Module]] = []
    for layer in layers:
        if layer not in LAYERS:
            raise unknown("layer kind", layer, LAYERS)
        kind = LAYERS[layer]
        kinds.extend(kind if isinstance(kind, tuple) else (kind,))
    wanted = tuple(kinds)
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, wanted):
            continue
        for attr in ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            parameter = module._parameters.get(attr)
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{path}.{attr}" if path else attr), parameter


def _weight_groups(name: str, parameter: nn.Parameter, split: bool) -> list[Group]:
    shape = tuple(parameter.shape)
    if split and name.endswith("in_proj_weight"):
        block = shape[0] // 3
        return [
            Group(f"{name}.{part}", (block, *shape[1:]), (Member(name, rows=(i * block, (i + 1) * block)),))
            for i, part in enumerate("qkv")
        ]
    return [Group(name, shape, (Member(name),))]


def select(model: nn.Module, spec: Select = Select()) -> list[Group]:
    """The groups of `model` that `spec` chooses, in registration order.

    Raises:
        ConfigError: nothing matches (the nearest parameter names are given); a chosen weight was already pruned
            by torch.nn.utils.prune or lies on the meta device.
    """
    found = list(_candidates(model, spec.layers))
    for pattern in (*spec.only, *spec.exclude):
        if not any(fnmatchcase(name, pattern) for name, _ in found):
            raise _no_match(model, pattern, [name for name, _ in found])
    chosen = [
        (name, p)
        for name, p in found
        if p.numel() >= spec.min_numel
        and any(fnmatchcase(name, g) for g in spec.only)
        and not any(fnmatchcase(name, g) for g in spec.exclude)
    ]
    chosen = chosen[1 if spec.first_dense else 0 : len(chosen) - (1 if spec.last_dense else 0)]
    if not chosen:
        raise ConfigError(
            f"nothing to make sparse: no weight of {type(model).__name__} matches layers={spec.layers}, "
            f"only={spec.only}, exclude={spec.exclude}, min_numel={spec.min_numel}"
        )
    for name, parameter in chosen:
        if parameter.is_meta:
            raise ConfigError(f"{name} lies on the meta device; materialise the model first")
    return [group for name, p in chosen for group in _weight_groups(name, p, spec.split_attention)]


def _no_match(model: nn.Module, pattern: str, names: list[str]) -> ConfigError:
    if any(name.endswith("_orig") for name, _ in model.named_parameters()):
        return ConfigError(
            "the model is already pruned by torch.nn.utils.prune; call torch.nn.utils.prune.remove on it first"
        )
    return unknown("weight pattern", pattern, names)


def entry_masks(
    groups: list[Group], masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks of whole tensors from unit masks: where several groups share a tensor, an entry needs all of them.

    Returns:
        parameter name -> bool tensor of its shape. For a plain weight this is the unit mask itself, not a copy.
    """
    out: dict[str, Tensor] = {}
    for group in groups:
        units = masks[group.name]
        if tuple(units.shape) != group.shape:
            raise ShapeError(f"mask of {group.name} has shape {tuple(units.shape)}, expected {group.shape}")
        if group.is_weight and group.members[0].name not in out:
            out[group.members[0].name] = units
            continue
        for member in group.members:
            if member.name not in out:
                out[member.name] = torch.ones_like(parameters[member.name], dtype=torch.bool)
            member.write(units, out[member.name])
    return out
