"""The errors that Gossamer raises, each naming the thing, the value and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class GossamerError(Exception):
    """Base of every error that Gossamer raises on purpose."""


class ConfigError(GossamerError, ValueError):
    """A setting, name or schedule that cannot be used."""


class ShapeError(GossamerError, ValueError):
    """A tensor whose shape does not fit the pattern, mask or file."""


class NumericsError(GossamerError, ArithmeticError):
    """NaN or infinity where a number is needed."""


class MaskError(GossamerError, ValueError):
    """A mask that is illegal, empties a layer, or disagrees with its weights."""


class CheckpointError(GossamerError, ValueError):
    """A file that is truncated, altered, of another version or of another model."""


class DataError(GossamerError, ValueError):
    """Data that is missing, corrupt or unusable for the request."""


class MissingExtra(GossamerError, ImportError):  # noqa: N818 - the public name
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"needs the package {package!r}: pip install 'gossamer[{extra}]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is in no table, with the nearest known names.

    >>> print(unknown("recipe", "rigel", ["rigl", "set", "gmp"]))
    unknown recipe 'rigel'; did you mean 'rigl'? Known: gmp, rigl, set
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return ConfigError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
