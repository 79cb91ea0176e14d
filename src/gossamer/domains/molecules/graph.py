"""Batches of molecules as one graph, and matrices as blocks of atoms and pairs of atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import DataError, ShapeError

from .basis import Layout
from .scf import Molecule, Sample


@dataclass(frozen=True)
class Graph:
    """Molecules side by side; every ordered pair of different atoms of one molecule is an edge.

    Args:
        kinds: (atoms,) index of the element in the layout. numbers: (atoms,) atomic numbers.
        positions: (atoms, 3) in angstrom.
        edges: (2, pairs) atoms i and j.
        sizes: atoms of every molecule.
    """

    kinds: Tensor
    numbers: Tensor
    positions: Tensor
    edges: Tensor
    sizes: tuple[int, ...]


def graph(molecules: Sequence[Molecule], layout: Layout, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of some molecules.

    Raises:
        DataError: no molecule, no pair of atoms at all, or an element outside the layout.
    """
    if not molecules:
        raise DataError("a batch needs at least one molecule")
    numbers = torch.as_tensor(np.concatenate([m.numbers for m in molecules]))
    for element in numbers.unique().tolist():
        layout.slots(element)
    positions = torch.as_tensor(np.concatenate([m.positions for m in molecules]), dtype=dtype)
    sizes = tuple(len(m.numbers) for m in molecules)
    edges, start = [], 0
    for size in sizes:
        pairs = (1 - torch.eye(size)).nonzero().T
        edges.append(pairs + start)
        start += size
    joined = torch.cat(edges, 1)
    if not joined.shape[1]:
        raise DataError("the batch has no pair of atoms; single atoms have no Hamiltonian to predict here")
    kinds = torch.tensor([layout.elements.index(int(e)) for e in numbers])
    return Graph(kinds, numbers, positions, joined, sizes)


@dataclass(frozen=True)
class Blocks:
    """A matrix of a batch in the template of a layout: (atoms, size, size) and (pairs, size, size), with masks."""

    diagonal: Tensor
    pairs: Tensor


def _rows(molecule: Molecule, layout: Layout) -> list[np.ndarray]:
    return [np.asarray(layout.slots(int(e))) for e in molecule.numbers]


def to_blocks(matrices: Sequence[np.ndarray], molecules: Sequence[Molecule], layout: Layout) -> Blocks:
    """Matrices in PySCF's order as blocks, in the order of `graph`; zero outside an element's orbitals."""
    diagonal: list[np.ndarray] = []
    pairs: list[np.ndarray] = []
    for matrix, molecule in zip(matrices, molecules, strict=True):
        rows = _rows(molecule, layout)
        ends = np.cumsum([len(r) for r in rows])
        if matrix.shape != (ends[-1], ends[-1]):
            raise ShapeError(f"the matrix is {matrix.shape}; the basis {layout.basis} gives {ends[-1]} orbitals")
        parts = [slice(end - len(r), end) for end, r in zip(ends, rows, strict=True)]
        for i, j in np.ndindex(len(rows), len(rows)):
            whole = np.zeros((layout.size, layout.size))
            whole[np.ix_(rows[i], rows[j])] = matrix[parts[i], parts[j]]
            (diagonal if i == j else pairs).append(whole)
    return Blocks(torch.tensor(np.array(diagonal)), torch.tensor(np.array(pairs)))


def masks(molecules: Sequence[Molecule], layout: Layout) -> Blocks:
    """1 where a block's entry is an orbital pair of the molecule, else 0."""
    counts = [sum(len(r) for r in _rows(m, layout)) for m in molecules]
    return to_blocks([np.ones((n, n)) for n in counts], molecules, layout)


def from_blocks(blocks: Blocks, molecules: Sequence[Molecule], layout: Layout) -> list[np.ndarray]:
    """The matrices in PySCF's order, float64."""
    diagonal, pairs = (part.detach().cpu().double().numpy() for part in (blocks.diagonal, blocks.pairs))
    found, atom, pair = [], 0, 0
    for molecule in molecules:
        rows = _rows(molecule, layout)
        grid: list[list[np.ndarray]] = []
        for i in range(len(rows)):
            line = []
            for j in range(len(rows)):
                source = diagonal[atom + i] if i == j else pairs[pair]
                pair += i != j
                line.append(source[np.ix_(rows[i], rows[j])])
            grid.append(line)
        atom += len(rows)
        found.append(np.block(grid))
    return found


def corrections(samples: Sequence[Sample]) -> list[np.ndarray]:
    """The targets: converged Fock matrix minus that of the initial guess, in hartree."""
    return [sample.fock - sample.guess for sample in samples]
