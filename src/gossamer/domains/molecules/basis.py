"""Atomic orbitals: shells of the elements in a basis, PySCF's order, and what a rotation does to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import ConfigError, DataError, MissingExtra, unknown

from .irreps import wigner

SYMBOLS = ("X", "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar")
BASES = ("sto-3g", "6-31g", "def2-svp", "def2-tzvp")
FROM_PYSCF = {1: (1, 2, 0)}  # p: x, y, z -> y, z, x; higher shells come in the order m = -l .. l already


def pyscf(part: str) -> Any:
    """A module of PySCF, such as "gto". Raises MissingExtra without PySCF."""
    from importlib import import_module

    try:
        return import_module(f"pyscf.{part}")
    except ImportError as error:
        raise MissingExtra("pyscf", "molecules") from error


def symbol(number: int) -> str:
    """Symbol of an element up to argon. Raises DataError for others."""
    if not 0 < number < len(SYMBOLS):
        raise DataError(f"element {number} is not supported; known are 1 (H) to {len(SYMBOLS) - 1} (Ar)")
    return SYMBOLS[number]


def number(name: str) -> int:
    """Atomic number of a symbol. Raises DataError for unknown ones."""
    if name not in SYMBOLS[1:]:
        raise DataError(f"unknown element {name!r}; known are {', '.join(SYMBOLS[1:])}")
    return SYMBOLS.index(name)


@cache
def shells(basis: str, element: int) -> tuple[int, ...]:
    """Degrees l of the shells of an element, contracted, in PySCF's order (sorted by l).

    Raises:
        ConfigError: an unknown basis. DataError: the basis does not have the element.
    """
    if basis not in BASES:
        raise unknown("basis", basis, BASES)
    gto = pyscf("gto")
    try:
        loaded = gto.basis.load(basis, symbol(element))
    except (KeyError, RuntimeError) as error:
        raise DataError(f"basis {basis!r} has no element {symbol(element)}; leave the molecule out") from error
    # an entry is [l, [exponent, coefficient, ...], ...]: as many shells as there are coefficients
    return tuple(sorted(entry[0] for entry in loaded for _ in range(len(entry[-1]) - 1)))


@dataclass(frozen=True)
class Layout:
    """Shells that hold the orbitals of every element in use: the template of one atom's rows.

    Args:
        basis: name of `BASES`.
        elements: atomic numbers.
    """

    basis: str
    elements: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.elements:
            raise ConfigError("a layout needs at least one element")
        for element in self.elements:
            shells(self.basis, element)

    @cached_property
    def template(self) -> tuple[int, ...]:
        """Degrees of the template's shells."""
        counts: dict[int, int] = {}
        for element in self.elements:
            own = shells(self.basis, element)
            for l in own:  # noqa: E741
                counts[l] = max(counts.get(l, 0), own.count(l))
        return tuple(l for l in sorted(counts) for _ in range(counts[l]))  # noqa: E741

    @cached_property
    def size(self) -> int:
        """Orbitals of the template."""
        return sum(2 * l + 1 for l in self.template)  # noqa: E741

    @property
    def lmax(self) -> int:
        """Degree that features need: twice that of the highest shell."""
        return 2 * max(self.template)

    def slots(self, element: int) -> list[int]:
        """Template rows of an element's orbitals, those in PySCF's order.

        Raises DataError where the element is not of this layout.
        """
        if element not in self.elements:
            known = ", ".join(symbol(e) for e in self.elements)
            raise DataError(f"element {symbol(element)} is outside this basis, which has {known}; train with it")
        return list(_slots(self, element))


@cache
def _slots(layout: Layout, element: int) -> tuple[int, ...]:
    starts: dict[int, list[int]] = {}
    at = 0
    for l in layout.template:  # noqa: E741
        starts.setdefault(l, []).append(at)
        at += 2 * l + 1
    slots: list[int] = []
    for l in shells(layout.basis, element):  # noqa: E741
        start = starts[l].pop(0)
        where = [0] * (2 * l + 1)
        for ours, theirs in enumerate(FROM_PYSCF.get(l, range(2 * l + 1))):
            where[theirs] = start + ours
        slots += where
    return tuple(slots)


def rotation_of_orbitals(basis: str, numbers: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(orbitals, orbitals) D such that a molecule turned by `rotation` (3, 3) has the Fock matrix D F D'."""
    blocks: list[Tensor] = []
    for element in numbers:
        for l in shells(basis, int(element)):  # noqa: E741
            order = list(FROM_PYSCF.get(l, range(2 * l + 1)))
            back = torch.empty(2 * l + 1, dtype=torch.long)
            back[order] = torch.arange(2 * l + 1)
            blocks.append(wigner(torch.as_tensor(rotation), l)[back][:, back])
    return np.asarray(torch.block_diag(*blocks))
