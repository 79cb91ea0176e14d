"""What commands share that run a study: settings as NAME=JSON, warnings as lines of the log, data that fit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from gossamer.cli.console import say
from gossamer.errors import ConfigError, GossamerError

if TYPE_CHECKING:
    from gossamer.data import Dataset

T = TypeVar("T")


@contextmanager
def spoken() -> Iterator[None]:
    """Warnings inside become lines of the log, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for line in dict.fromkeys(str(warning.message) for warning in caught):
        say(f"note: {line}")


def settings(sets: Sequence[str] | None) -> dict[str, Any]:
    """The values of `--set NAME=JSON`. Raises ConfigError for text that is no JSON."""
    out = {}
    for entry in sets or ():
        name, _, value = entry.partition("=")
        try:
            out[name] = json.loads(value)
        except ValueError as error:
            raise ConfigError(
                f"--set takes NAME=JSON, such as 'model_options={{\"hidden\": [64]}}', not {entry!r}"
            ) from error
    return out


def numbers(text: str) -> list[float]:
    """The sparsities of an option. Raises ConfigError for text that is no list of numbers."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"sparsities are numbers with commas between them, not {text!r}") from error


def made(make: Callable[..., T], *values: Any, **more: Any) -> T:
    """`make(*values, **more)`, where a setting of a wrong kind (a number for a list) is a message too.

    Raises:
        ConfigError: a TypeError or ValueError inside.
    """
    try:
        return make(*values, **more)
    except GossamerError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a setting is of the wrong kind: {error}; see the values that --set takes") from error


def check_classes(name: str, data: Dataset) -> None:
    """Raises ConfigError unless the data set holds samples with classes."""
    if data.kind != "classification":
        raise ConfigError(f"data set {name!r} is for {data.kind}; this command needs samples with classes")
