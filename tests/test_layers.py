"""Imports point down: the floors of the house, checked on the syntax tree of every source file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# Part -> floor. A file may import parts of lower floors, and its own part.
FLOORS: dict[str, int] = {
    "errors": 0,
    **dict.fromkeys(("kernels", "maths", "transport", "metrics"), 1),
    **dict.fromkeys(("data", "models"), 2),
    "sparsify": 3,
    "runs": 4,
    "training": 5,
    "recipes": 6,
    **dict.fromkeys(("engine", "architectures", "reuse", "experts", "autoencoders", "llm"), 7),
    "domains": 8,
    **dict.fromkeys(("report", "claims", "papers", "testing", "cli"), 9),
}
# Neighbours on one floor. maths and kernels serve the floors above and each other only in this direction.
SIDEWAYS = {
    ("maths", "kernels"),
    ("transport", "kernels"),
    ("transport", "maths"),
    ("metrics", "kernels"),
    ("metrics", "maths"),
    ("models", "data"),
    ("llm", "engine"),
}
FRONT_HALL = 9
# The second runs plans where there is no torch, which the first needs.
IMPORT_EXTENSION = ("gossamer.kernels.native", "gossamer.engine.runtime")


def allowed(importer: str, imported: str) -> bool:
    if importer == imported or (importer, imported) in SIDEWAYS:
        return True
    if FLOORS[importer] == FLOORS[imported] == FRONT_HALL:
        return True
    return FLOORS[imported] < FLOORS[importer]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((SOURCE / "gossamer").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports, relative ones resolved, also those inside functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def problems(module: str, names: Iterator[str]) -> list[str]:
    """What is wrong with a module that imports these names."""
    found = []
    for name in names:
        if not name.startswith("gossamer."):
            continue
        imported, importer = name.split(".")[1], [*module.split("."), ""][1]
        if imported == "_native" and module not in IMPORT_EXTENSION:
            found.append(f"{module} imports the extension; ask gossamer.kernels.native")
        elif importer and imported in FLOORS and not allowed(importer, imported):
            found.append(f"{module} ({importer}) imports {name}: upward or sideways")
        elif importer == imported == "domains" and module.split(".")[2:3] not in ([], name.split(".")[2:3]):
            found.append(f"{module} imports another domain: {name}")
    return found


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if type(value) is str else "")
def test_imports_point_down(module, path):
    assert not problems(module, imports(module, path, ast.parse(path.read_text())))


def test_every_part_has_a_floor():
    parts = {module.split(".")[1] for module, _ in modules() if "." in module}
    assert parts <= set(FLOORS)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gossamer.maths.x", "from gossamer.sparsify import masks"),
        ("gossamer.maths.x", "from ..sparsify import masks"),
        ("gossamer.maths.x", "from .. import sparsify"),
        ("gossamer.maths.x", "def f():\n    import gossamer.runs"),
        ("gossamer.kernels.topk", "from gossamer import _native"),
        ("gossamer.engine.x", "import gossamer.llm"),
        ("gossamer.reuse.x", "import gossamer.engine"),
        ("gossamer.kernels.x", "import gossamer.maths"),
        ("gossamer.domains.graphs.x", "from gossamer.domains import molecules"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert problems(module, imports(module, Path("x.py"), ast.parse(line)))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gossamer.llm.x", "import gossamer.engine"),
        ("gossamer.sparsify.x", "from ..kernels.topk import topk_mask"),
        ("gossamer.kernels.native", "from gossamer import _native"),
        ("gossamer.cli.x", "import gossamer.report, gossamer.claims"),
        ("gossamer.domains.graphs.x", "from gossamer.domains.graphs import y"),
    ],
)
def test_a_legal_import_passes(module, line):
    assert not problems(module, imports(module, Path("x.py"), ast.parse(line)))
