"""The compiled kernels, or None: the only module that imports the extension.

The environment variable `GOSSAMER_CPU` forces a level (`portable`, `neon`, `avx2`, `avx512`), or `none` for
the plain-torch references.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

import gossamer
from gossamer.errors import ConfigError, unknown

try:
    from gossamer import _native as _extension
except ImportError:  # installed without a compiler
    _extension = None

_OFF = "none"
_active: ModuleType | None = _extension
_threads: int | None = None
_warned = False


def levels() -> tuple[str, ...]:
    """The levels that `use` accepts here, from slowest to fastest; `none` runs the references."""
    return (_OFF, *(_extension.levels() if _extension else ()))


def level() -> str:
    """The level in use: `none`, `portable`, `neon`, `avx2` or `avx512`."""
    return str(_active.level()) if _active else _OFF


def use(wanted: str) -> None:
    """Run kernels at this level from now on.

    Raises:
        ConfigError: this machine, or this installation, has no such level.
    """
    global _active
    if wanted not in levels():
        raise unknown("processor level", wanted, levels())
    _active = None if wanted == _OFF else _extension
    if _active:
        _active.set_level(wanted)


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """`use` for a while."""
    before = level()
    use(wanted)
    try:
        yield
    finally:
        use(before)


def extension() -> Any:
    """The extension module, or None where the references must run (said once, unless asked for)."""
    if _active is None:
        _warn_once()
    return _active


def _warn_once() -> None:
    global _warned
    if _extension is None and not _warned:
        _warned = True
        warnings.warn(
            "gossamer was installed without its compiled kernels, so slower plain-torch versions run; "
            "install a C++20 compiler and reinstall gossamer to build them",
            RuntimeWarning,
            stacklevel=4,
        )


def threads() -> int:
    """Threads that a kernel may use: what `set_threads` said, else torch.get_num_threads()."""
    return _threads or torch.get_num_threads()


def set_threads(count: int | None) -> None:
    """Fix the number of threads of the kernels; None follows torch.set_num_threads again.

    Results do not depend on it.

    Raises:
        ConfigError: count is below 1.
    """
    global _threads
    if count is not None and count < 1:
        raise ConfigError(f"threads must be at least 1, or None to follow torch; got {count}")
    _threads = count


def info() -> dict[str, Any]:
    """What runs here: level, levels, features of the processor, threads, versions."""
    return {
        "level": level(),
        "levels": list(levels()),
        "features": list(_extension.features()) if _extension else [],
        "threads": threads(),
        "version": gossamer.__version__,
        "torch": torch.__version__,
    }


if "GOSSAMER_CPU" in os.environ:
    use(os.environ["GOSSAMER_CPU"])
