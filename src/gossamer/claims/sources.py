"""Fingerprint of source code: which modules a module imports, and a hash of what they say."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from gossamer.errors import ConfigError

PACKAGE = "gossamer"
ROOT = Path(__file__).resolve().parents[1]

# What cannot change a figure: messages of errors and the machinery around a claim.
_IGNORED = {
    "gossamer",
    "gossamer.errors",
    "gossamer.claims",
    "gossamer.claims.protocol",
    "gossamer.claims.run",
    "gossamer.claims.sources",
    "gossamer.claims.store",
    "gossamer.papers",
}


def fingerprint(module: str) -> str:
    """Hash (16 hex digits) of the code of `module` and of all that it imports from this package.

    Comments, docstrings and blank lines do not count: only a change of behaviour makes a result stale.

    Raises:
        ConfigError: no such module in this package.
    """
    if _path(module) is None:
        raise ConfigError(f"no module {module!r} in {PACKAGE}")
    digest = hashlib.sha256()
    for name in sorted(closure(module)):
        digest.update(f"{name}\0{_digest(name)}\0".encode())
    return digest.hexdigest()[:16]


def closure(module: str) -> set[str]:
    """`module` and all modules of this package that it imports, transitively, also within functions."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in seen and name not in _IGNORED:
            seen.add(name)
            pending.extend(_imports(name))
    return seen


def _path(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = ROOT.joinpath(*parts[1:])
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@cache
def _imports(module: str) -> frozenset[str]:
    path = _path(module)
    assert path is not None  # only names that `_existing` let through come here
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(_existing(_named(tree, package)))


def _named(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that an import may refer to: modules, and attributes that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                anchor = ".".join(parents[: len(parents) - node.level + 1])
                base = f"{anchor}.{base}" if base else anchor
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _existing(names: Iterable[str]) -> Iterator[str]:
    """Those of `names` that are modules of this package, and their parent packages, which run first."""
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            if _path(prefix) is not None:
                yield prefix


@cache
def _digest(module: str) -> str:
    path = _path(module)
    assert path is not None
    return hashlib.sha256(essence(path.read_text(encoding="utf-8")).encode()).hexdigest()


def essence(source: str) -> str:
    """`source` without comments, docstrings, blank lines and trailing space; the same on every Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and ast.get_docstring(node, clean=False) is not None:
                for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
