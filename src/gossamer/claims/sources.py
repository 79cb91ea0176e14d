"""Fingerprint of source code: which modules a module imports, and a hash of what they say."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
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
    """`module` and all modules of this package that it imports, transitively, also within functions.

    A package that merely gathers names stands for what is taken from it: `recipes.rigl` does not depend on the
    other recipes.
    """
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
    """The modules whose behaviour `module` may see."""
    tree = _tree(module)
    return frozenset(found for name in _named(tree, _package(module)) for found in _resolved(name))


@cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    assert path is not None  # only names of existing modules come here
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_package(module: str) -> bool:
    path = _path(module)
    return path is not None and path.name == "__init__.py"


def _package(module: str) -> str:
    return module if _is_package(module) else module.rpartition(".")[0]


def _named(tree: ast.Module, package: str) -> Iterator[str]:
    """Every dotted name that an import may refer to. Of a package taken as a whole, only what is used of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            for alias in node.names:
                star = alias.name == "*"
                full = base if star else f"{base}.{alias.name}"
                used = _attributes(tree, alias.asname or alias.name) if _is_package(full) and not star else None
                yield from [full] if used is None else (f"{full}.{name}" for name in used)


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute name behind `from`."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    anchor = parents[: len(parents) - node.level + 1]
    return ".".join([*anchor, node.module] if node.module else anchor)


def _attributes(tree: ast.Module, name: str) -> set[str] | None:
    """The attributes of `name` that `tree` reads, or None where it does anything else with it."""
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in owners if isinstance(node.value, ast.Name) and node.value.id == name}
    inside = {id(node.value) for node in owners}
    bare = any(isinstance(n, ast.Name) and n.id == name and id(n) not in inside for n in ast.walk(tree))
    return None if bare else used


def _resolved(name: str) -> Iterator[str]:
    """The modules behind a dotted name: those that define it, and the packages on the way that do something."""
    parts = name.split(".")
    prefixes = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    modules = [prefix for prefix in prefixes if _path(prefix) is not None]
    if not modules:
        return
    yield from (module for module in modules[:-1] if not (_is_package(module) and _only_names(module)))
    last = modules[-1]
    rest = parts[len(last.split(".")) :]
    if rest and _is_package(last) and _only_names(last):
        source = _reexports(last).get(rest[0])
        if source is not None:
            yield from _resolved(source)
            return
    yield last


@cache
def _only_names(package: str) -> bool:
    """Whether an `__init__` merely gathers names (imports, tables of them): running it changes nothing."""
    return all(map(_gathers, _tree(package).body))


def _gathers(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr):
        plain = ast.Name | ast.Constant | ast.Dict | ast.List | ast.Tuple | ast.Starred | ast.expr_context
        return statement.value is None or all(isinstance(node, plain) for node in ast.walk(statement.value))
    return False


@cache
def _reexports(package: str) -> dict[str, str]:
    """Name in a package -> the dotted name that its `__init__` imports it from."""
    imports = [node for node in _tree(package).body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: f"{_base(node, package)}.{alias.name}" for node in imports for alias in node.names
    }


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
