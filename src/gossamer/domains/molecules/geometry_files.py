"""Molecules of other people's files: .xyz, .sdf, and databases in QH9's form."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.errors import DataError, NumericsError

from .basis import Layout, number
from .scf import Molecule, factor

Say = Callable[[str], None]


def read_xyz(path: str | Path, unit: str = "angstrom", skip: Say | None = None) -> list[Molecule]:
    """Molecules of an .xyz file, one or several frames.

    Args:
        skip: called with a message for each frame that is well-formed but no molecule (unknown element, NaN, atoms
            that coincide), which is then left out; None refuses the file. Elements are symbols or atomic numbers.
    Raises:
        DataError: a line that is not as it should be, or an end too early, with its number; or a bad frame.
    """
    lines, at = _lines(path), 0
    found: list[Molecule] = []
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        head = at + 1
        try:
            count = int(lines[at])
        except ValueError as error:
            raise DataError(f"{path}, line {head}: {lines[at]!r} is no number of atoms of an .xyz frame") from error
        if count < 1 or len(lines) < at + 2 + count:
            raise DataError(
                f"{path}, line {head}: a frame of {count} atoms, but {max(0, len(lines) - at - 2)} lines follow its "
                "comment; the file is truncated, or the number wrong"
            )
        atoms = [_atom(path, at + 3 + n, lines[at + 2 + n].split()) for n in range(count)]
        _keep(found, f"{path}, line {head}", atoms, factor(unit), skip)
        at += 2 + count
    if not found:
        raise DataError(f"{path} holds no molecule")
    return found


def read_sdf(path: str | Path, limit: int | None = None, skip: Say | None = None) -> list[Molecule]:
    """Molecules of an MDL file (V2000), positions in angstrom.

    Args:
        limit: records to read. skip: as for `read_xyz`.
    Raises:
        DataError: a record without its table of atoms, or a bad one, with its number, counted from 1.
    """
    records = [r for r in "\n".join(_lines(path)).split("$$$$") if r.strip()]
    found: list[Molecule] = []
    for place, record in enumerate(records[:limit], start=1):
        where, lines = f"{path}, record {place}", record.removeprefix("\n").splitlines()
        try:
            count = int(lines[3][:3])
        except (IndexError, ValueError) as error:
            raise DataError(f"{where}: no V2000 table of atoms in its fourth line") from error
        if len(lines) < 4 + count:
            raise DataError(f"{where}: {count} atoms, but {len(lines) - 4} lines follow; the file is truncated")
        rows = [line.split() for line in lines[4 : 4 + count]]
        _keep(found, where, [_atom(where, None, [*row[3:4], *row[:3]]) for row in rows], 1.0, skip)
    if not found:
        raise DataError(f"{path} holds no molecule")
    return found


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"cannot read molecules from {path}: {error.strerror}") from error


def _atom(path: object, line: int | None, row: list[str]) -> tuple[str, list[float]]:
    """Symbol and position of a row that begins with the symbol."""
    try:
        return row[0], [float(v.replace("D", "E")) for v in (row[1], row[2], row[3])]
    except (IndexError, ValueError) as error:
        where = f"{path}, line {line}" if line else str(path)
        raise DataError(f"{where}: {' '.join(row)!r} is no atom: an element and three numbers") from error


def _keep(
    found: list[Molecule], where: str, atoms: list[tuple[str, list[float]]], scale: float, skip: Say | None
) -> None:
    try:
        numbers = np.array([int(name) if name.isdigit() else number(name.capitalize()) for name, _ in atoms])
        found.append(Molecule(numbers, scale * np.array([place for _, place in atoms])))
    except (DataError, NumericsError) as error:
        if skip is None:
            raise DataError(f"{where}: {error}") from error
        skip(f"{where}: left out: {error}")


def read_qh9(path: str | Path, limit: int | None = None, unit: str = "angstrom") -> list[tuple[Molecule, np.ndarray]]:
    """Molecules and Fock matrices (def2-svp, PySCF's order, hartree) of a database in QH9's form.

    The form is a SQLite table `data` with rows (id, ..., atoms, int32 numbers, float64 positions, float64 matrix). It
    was written from its published description and tested on a file of that form, not on QH9 itself.

    Raises:
        DataError: no such table, or a row whose sizes disagree with the basis, or whose matrix is not symmetric.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist")
    connection = sqlite3.connect(f"file:{Path(path).resolve()}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT * FROM data LIMIT ?", (-1 if limit is None else limit,)).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is no database in QH9's form ({error})") from error
    finally:
        connection.close()
    if not rows:
        raise DataError(f"{path} holds no molecule")
    return [_qh9_row(f"{path}, row {row[0]}", row, factor(unit)) for row in rows]


def _qh9_row(where: str, row: tuple[Any, ...], scale: float) -> tuple[Molecule, np.ndarray]:
    try:
        *_, atoms, numbers, positions, matrix = row
        elements = np.frombuffer(numbers, np.int32)
        places, values = np.frombuffer(positions, np.float64), np.frombuffer(matrix, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: no atoms, int32 numbers, float64 positions and float64 matrix ({error})") from error
    try:
        layout = Layout("def2-svp", tuple(sorted({int(e) for e in elements})))
        orbitals = sum(len(layout.slots(int(e))) for e in elements)
        if len(elements) != atoms or places.size != 3 * atoms or values.size != orbitals**2:
            raise DataError(f"{values.size} entries for {orbitals} orbitals of {atoms} atoms")
        fock = values.reshape(orbitals, orbitals)
        if not np.allclose(fock, fock.T, atol=1e-5):
            raise DataError("the matrix is not symmetric, or holds NaN")
        return Molecule(elements, scale * places.reshape(-1, 3)), fock
    except (DataError, NumericsError) as error:
        raise DataError(f"{where}: {error}") from error
