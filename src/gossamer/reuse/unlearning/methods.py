"""The one table of unlearning methods that users name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from ...errors import ConfigError, unknown
from .descent import FineTune, GradientAscent, L1Sparse, RandomLabels, Retrain
from .fisher import FisherForgetting
from .influence import Influence
from .masks import Job
from .split import ForgetSplit


@runtime_checkable
class Method(Protocol):
    """Makes a model forget. A frozen dataclass of settings with one call."""

    name: ClassVar[str]

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model without the influence of `split.forget`; may change the one that it is given."""


METHODS: Mapping[str, type[Any]] = {
    "retrain": Retrain,
    "ft": FineTune,
    "ga": GradientAscent,
    "rl": RandomLabels,
    "ff": FisherForgetting,
    "iu": Influence,
    "l1": L1Sparse,
}

# The names in full.
ALIASES: Mapping[str, str] = {
    "fine-tune": "ft",
    "gradient-ascent": "ga",
    "random-label": "rl",
    "fisher": "ff",
    "influence": "iu",
    "l1-sparse": "l1",
}


def make_method(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """A method by its name in `METHODS` or `ALIASES` with some of its settings, or the value itself.

    Raises:
        ConfigError: an unknown name or setting, with the nearest known ones; a setting out of range.

    >>> make_method("ft", {"epochs": 3}).epochs
    3
    """
    given = dict(options or {})
    if not isinstance(method, str):
        if given:
            raise ConfigError(f"{type(method).__name__} has its settings; give {', '.join(given)} to it")
        return method
    method = ALIASES.get(method, method)
    if method not in METHODS:
        raise unknown("unlearning method", method, [*METHODS, *ALIASES])
    known = [f.name for f in dataclasses.fields(METHODS[method])]
    for option in given:
        if option not in known:
            raise unknown(f"option of unlearning method {method!r}", option, known)
    try:
        made: Method = METHODS[method](**given)
    except TypeError as error:
        raise ConfigError(f"unlearning method {method!r} with {given}: {error}") from error
    return made


def settings(method: Method) -> dict[str, Any]:
    """The settings of a method as JSON values."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    return {key: _plain(value) for key, value in values.items() if value is not None and not callable(value)}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
