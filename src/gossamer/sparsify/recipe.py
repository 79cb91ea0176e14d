"""A recipe is a value: a frozen composition of parts that prints as YAML and is rebuilt from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import yaml

from ..errors import ConfigError, unknown
from ..maths import schedules
from ..maths.schedules import Steps
from . import allocation, ensembles, estimators, lowest, patterns, regularizers, updates, weight_ops
from .groups import Select
from .patterns import Pattern, Unstructured
from .scores import SCORES
from .updates import Update


@dataclass(frozen=True)
class Recipe:
    """A published method as a composition of parts. Times are fractions of the run.

    Args:
        name: what to call it.
        select: which weights may become sparse.
        pattern: where zeros may lie; `layers` overrides it: rows (name pattern, Pattern), the first match wins.
            Either may be a table `Steps` of patterns, one after the other.
        family: how masks act on forward and backward (estimators.py).
        updates: mask changes; those without `when` run once before training.
        regularizers, weight_ops: terms on gradients, operations on weights after each step.
        scale_init: multiply each masked initial weight by 1/sqrt(density of its layer), which restores the variance
            of pre-activations.
    """

    name: str = "dense"
    select: Select = field(default_factory=Select)
    pattern: Pattern | Steps = field(default_factory=Unstructured)
    layers: tuple[tuple[str, Pattern | Steps], ...] = ()
    family: Any = field(default_factory=estimators.Projected)
    updates: tuple[Update, ...] = ()
    regularizers: tuple[Any, ...] = ()
    weight_ops: tuple[Any, ...] = ()
    scale_init: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Statistics and data that its scores ask for."""
        return frozenset().union(*(u.needs for u in self.updates))

    def patterns_of(self, name: str) -> Steps:
        """The patterns of the group `name` over the run: a table of one row where it never changes."""
        rule = next((rule for glob, rule in self.layers if fnmatchcase(name, glob)), self.pattern)
        return rule if isinstance(rule, Steps) else Steps(((0.0, rule),))

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_yaml(self) -> str:
        """The recipe as YAML; defaults are left out."""
        return yaml.safe_dump(encode_fields(self), sort_keys=False)

    @staticmethod
    def from_yaml(text: str) -> Recipe:
        """Rebuild a recipe. Raises ConfigError naming an unknown part or field with its nearest neighbours."""
        data = yaml.safe_load(text)
        if not isinstance(data, dict):
            raise ConfigError(f"a recipe is a YAML mapping, got {type(data).__name__}")
        return decode_fields(Recipe, data)


PARTS: dict[str, type] = {
    "constant": schedules.Constant,
    "linear": schedules.Linear,
    "cubic": schedules.Cubic,
    "cosine": schedules.Cosine,
    "exponential": schedules.Exponential,
    "fade": schedules.Fade,
    "steps": schedules.Steps,
    "every": schedules.Every,
    "select": Select,
    "unstructured": patterns.Unstructured,
    "nm": patterns.NM,
    "block": patterns.Block,
    "rows": patterns.Rows,
    "cols": patterns.Cols,
    "group_to_group": ensembles.GroupToGroup,
    "uniform": allocation.Uniform,
    "uniform_plus": allocation.UniformPlus,
    "er": allocation.ER,
    "erk": allocation.ERK,
    "given": allocation.Given,
    "flops_budget": allocation.FlopsBudget,
    "global": allocation.Global,
    "projected": estimators.Projected,
    "ste": estimators.STE,
    "sr_ste": estimators.SRSTE,
    "soft_mask": estimators.SoftMask,
    "scored": estimators.Scored,
    "set_to": updates.SetTo,
    "prune_to": updates.PruneTo,
    "prune_grow": updates.PruneGrow,
    "grow_to": updates.GrowTo,
    "rank_lowest": lowest.RankLowest,
    "freeze": updates.Freeze,
    "l1": regularizers.L1,
    "l2": regularizers.L2,
    "bn_l1": regularizers.BNL1,
    "hard_zero": weight_ops.HardZero,
    "shrink": weight_ops.Shrink,
    "soft_threshold": weight_ops.SoftThreshold,
    **SCORES,
    "within_groups": ensembles.WithinGroups,
}
NAMES: dict[type, str] = {part: name for name, part in PARTS.items()}


def encode_fields(part: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, encoded."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if type(value) is not type(default) or value != default:
            out[f.name] = encode(value)
    return out


def encode(value: Any) -> Any:
    """Parts as `name` or `{name: {field: value}}`, tuples as lists, plain values as they are."""
    if type(value) in NAMES:
        fields = encode_fields(value)
        return {NAMES[type(value)]: fields} if fields else NAMES[type(value)]
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{value!r} is not a part that a recipe can hold")


def decode(value: Any, text: bool = False) -> Any:
    """The inverse of `encode`. A string is a part's name unless `text` says that this field holds text."""
    if isinstance(value, list):
        return tuple(decode(v, text) for v in value)
    if isinstance(value, dict):
        if len(value) != 1:
            raise ConfigError(f"a part is one name with its fields, got the keys {sorted(map(str, value))}")
        ((name, fields),) = value.items()
        return decode_fields(_part(name), fields or {})
    if isinstance(value, str) and not text:
        return _part(value)()
    return value


def _part(name: str) -> type:
    if name not in PARTS:
        raise unknown("recipe part", str(name), PARTS)
    return PARTS[name]


_TEXT = {"name", "only", "exclude", "layout", "tail", "rounding", "redistribute", "init", "where", "train", "channels"}
_TABLES = {"layers", "table", "flops"}  # rows of (name, value); `Select.layers` holds names only


def decode_fields(kind: type, data: dict[str, Any]) -> Any:
    """An object of `kind` from encoded fields."""
    known = {f.name for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            raise unknown(f"field of {NAMES.get(kind, 'recipe')}", key, known)
        if key in _TABLES and kind is not Select:
            values[key] = tuple((row[0], decode(row[1])) for row in value)
        else:
            values[key] = decode(value, text=key in _TEXT or kind is Select)
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{NAMES.get(kind, 'recipe')}: {error}") from None
