"""The graphs that a user may name."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import unknown
from .graph import PLANETOID, Graph, block_model, karate, planetoid
from .ogb import arxiv

GRAPHS: dict[str, Callable[[int], Graph]] = {
    **{name: lambda seed, name=name: planetoid(name) for name in PLANETOID},  # type: ignore[misc]
    "arxiv": lambda seed: arxiv(),
    "karate": lambda seed: karate(),
    "blocks": lambda seed: block_model(seed=seed),
}


def load(name: str, seed: int = 0) -> Graph:
    """The graph of `GRAPHS` of that name; `seed` matters to generated ones.

    Raises ConfigError for another name, DataError where its files are missing.
    """
    if name not in GRAPHS:
        raise unknown("graph", name, GRAPHS)
    return GRAPHS[name](seed)
