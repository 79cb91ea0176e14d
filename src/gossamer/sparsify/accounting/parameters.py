"""Counting parameters and zeros. Tied parameters count once; where there is a mask, the mask decides what is zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import ShapeError, unknown
from ..groups import LAYERS, Select

SCOPES = ("prunable", "weights", "all")
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Count:
    """How many parameters there are and how many of them are kept."""

    total: int
    kept: int

    @property
    def density(self) -> float:
        """Kept fraction; 1 where there is nothing to count."""
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """Zero fraction."""
        return 1.0 - self.density


@dataclass(frozen=True)
class LayerCount(Count):
    """The count of one parameter. `scope` is the narrowest of SCOPES that it belongs to."""

    name: str = ""
    shape: tuple[int, ...] = ()
    scope: str = "all"
    masked: bool = False


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter as the forward pass sees it, all aliases of tied ones included.

    A parametrised weight appears under its plain name with its effective value; what a parametrisation owns beside
    the weight (a trained score) is not a parameter of the network.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        if ".parametrizations." in f".{path}.":
            continue
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:
                yield prefix + name, getattr(module, name)


def _identity(model: nn.Module, name: str, value: Tensor) -> int:
    """What tied parameters have in common."""
    path, _, attr = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attr):
        return id(module.parametrizations[attr].original)  # type: ignore[index, union-attr]
    return id(value)


def unique_weights(model: nn.Module, masks: Masks | None = None) -> list[tuple[str, Tensor, Tensor | None]]:
    """(name, value, mask or None) of every parameter, tied ones once under their first name.

    Raises:
        ConfigError: a mask of no parameter (nearest names given). ShapeError: a mask that does not fit.
    """
    first: dict[int, str] = {}
    values: dict[str, Tensor] = {}
    alias: dict[str, str] = {}
    for name, value in named_weights(model):
        key = first.setdefault(_identity(model, name, value), name)
        alias[name] = key
        values.setdefault(key, value)
    found: dict[str, Tensor] = {}
    for name, mask in (masks or {}).items():
        if name not in alias:
            raise unknown("parameter of a mask", name, alias)
        if mask.shape != values[alias[name]].shape:
            raise ShapeError(
                f"mask of {name} has shape {tuple(mask.shape)}, the parameter {tuple(values[alias[name]].shape)}"
            )
        found[alias[name]] = mask.bool()
    return [(name, value.detach(), found.get(name)) for name, value in values.items()]


def prunable_names(model: nn.Module, select: Select = Select()) -> set[str]:
    """First names of the weights that `select` allows to become sparse; empty where it matches nothing."""
    kinds: tuple[type[nn.Module], ...] = ()
    for layer in select.layers:
        if layer not in LAYERS:
            raise unknown("layer kind", layer, LAYERS)
        kind = LAYERS[layer]
        kinds += kind if isinstance(kind, tuple) else (kind,)
    owned = {path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, kinds)}
    names = [
        name
        for name, value, _ in unique_weights(model)
        if name.rpartition(".")[0] in owned
        and name.rpartition(".")[2].endswith("weight")
        and value.numel() >= select.min_numel
        and any(fnmatchcase(name, glob) for glob in select.only)
        and not any(fnmatchcase(name, glob) for glob in select.exclude)
    ]
    return set(names[1 if select.first_dense else 0 : len(names) - (1 if select.last_dense else 0)])


def layer_table(model: nn.Module, masks: Masks | None = None, select: Select = Select()) -> list[LayerCount]:
    """One row per parameter, in registration order.

    Args:
        masks: parameter name -> bool mask of its shape (`Sparsifier.entry_masks`). Unmasked parameters are dense;
            without any masks (None), the non-zero values are counted instead.
        select: what is prunable; masked parameters always are.
    """
    prunable = prunable_names(model, select)
    rows = []
    for name, value, mask in unique_weights(model, masks):
        if mask is not None:
            kept, scope = int(mask.sum()), "prunable"
        else:
            kept = int(value.count_nonzero()) if masks is None else value.numel()
            scope = "prunable" if name in prunable else "weights" if value.ndim >= 2 else "all"
        rows.append(LayerCount(value.numel(), kept, name, tuple(value.shape), scope, mask is not None))
    return rows


def sparsity(model: nn.Module, masks: Masks | None = None, scope: str = "prunable", select: Select = Select()) -> Count:
    """Parameters and survivors in one scope.

    Args:
        scope: "prunable": weights that may be sparse; "weights": all parameters of two or more dimensions;
            "all": also biases and norms. Each contains the one before. Gates are prunable whatever their dimension.
        masks, select: as in `layer_table`.
    Raises:
        ConfigError: unknown scope, or a mask of no parameter.
    Source: after the themes of Liu & Wang 2023 (2302.02596): no sparsity without its scope.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    return sparsity_triple(model, masks, select)[scope]


def sparsity_triple(model: nn.Module, masks: Masks | None = None, select: Select = Select()) -> dict[str, Count]:
    """`sparsity` in all scopes, the three numbers that belong together."""
    rows = layer_table(model, masks, select)
    out = {}
    for depth, scope in enumerate(SCOPES):
        inside = [row for row in rows if row.scope in SCOPES[: depth + 1]]
        out[scope] = Count(sum(row.total for row in inside), sum(row.kept for row in inside))
    return out


@dataclass(frozen=True)
class Disagreement:
    """A parameter whose values and mask differ.

    Args:
        kept: survivors by mask. nonzero: by value. leaked: non-zero values outside the mask.
    """

    name: str
    kept: int
    nonzero: int
    leaked: int


def disagreements(model: nn.Module, masks: Masks) -> list[Disagreement]:
    """Where counting values and counting masks give different numbers (lint E1); `leaked` > 0 is lint E2.

    Kept weights that happen to be zero (just grown ones, for instance) are disagreements without a leak.
    """
    out = []
    for name, value, mask in unique_weights(model, masks):
        if mask is None:
            continue
        kept, nonzero = int(mask.sum()), int(value.count_nonzero())
        leaked = int(value[~mask].count_nonzero())
        if kept != nonzero or leaked:
            out.append(Disagreement(name, kept, nonzero, leaked))
    return out
