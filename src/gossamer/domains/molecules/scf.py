"""Molecules, and their Hartree-Fock labels from PySCF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gossamer.errors import ConfigError, DataError, NumericsError, unknown

from .basis import BASES, pyscf, symbol

NEAREST = 0.3  # angstrom; closer atoms are a mistake
TOLERANCE = 1e-11  # hartree; PySCF's own 1e-9 leaves orbital energies 3e-7 off
BOHR = 0.529177210903  # angstrom


@dataclass(frozen=True)
class Molecule:
    """A neutral molecule.

    Args:
        numbers: (atoms,) atomic numbers.
        positions: (atoms, 3) in angstrom.
    Raises:
        DataError: no atom, shapes that disagree, an unknown element, two atoms closer than 0.3 angstrom.
        NumericsError: a position is NaN or infinite.
    """

    numbers: np.ndarray
    positions: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", np.asarray(self.numbers, dtype=np.int64))
        object.__setattr__(self, "positions", np.asarray(self.positions, dtype=np.float64))
        if self.numbers.ndim != 1 or not len(self.numbers) or self.positions.shape != (len(self.numbers), 3):
            raise DataError(
                f"a molecule needs numbers (atoms,) and positions (atoms, 3); got {self.numbers.shape} and "
                f"{self.positions.shape}"
            )
        for element in self.numbers:
            symbol(int(element))
        if not np.isfinite(self.positions).all():
            raise NumericsError("positions hold NaN or infinity; remove the molecule")
        gaps = np.linalg.norm(self.positions[:, None] - self.positions[None], axis=-1)
        gaps[np.diag_indices(len(gaps))] = np.inf
        if gaps.min() < NEAREST:
            first, second = sorted(np.unravel_index(gaps.argmin(), gaps.shape))
            raise DataError(
                f"atoms {first} and {second} are {gaps.min():.3f} angstrom apart, less than {NEAREST}; "
                "positions are in angstrom: pass unit='bohr' for others"
            )

    @classmethod
    def of(cls, symbols: str, positions: Any, unit: str = "angstrom") -> Molecule:
        """From symbols, such as "O H H", and positions. Raises ConfigError for an unknown unit."""
        from .basis import number

        return cls(np.array([number(s) for s in symbols.split()]), np.asarray(positions, float) * factor(unit))

    @property
    def electrons(self) -> int:
        """Of the neutral molecule."""
        return int(self.numbers.sum())

    def occupied(self) -> int:
        """Doubly occupied orbitals. Raises DataError for an odd number of electrons."""
        if self.electrons % 2:
            raise DataError(
                f"{self.electrons} electrons: an open shell; only closed shells (restricted Hartree-Fock) are supported"
            )
        return self.electrons // 2


def factor(unit: str) -> float:
    """Angstrom per unit of length. Raises ConfigError for an unknown unit."""
    units = {"angstrom": 1.0, "bohr": BOHR}
    if unit not in units:
        raise unknown("unit", unit, units)
    return units[unit]


@dataclass(frozen=True)
class Sample:
    """A molecule with its labels, in PySCF's order of orbitals, energies in hartree.

    Args:
        fock: (orbitals, orbitals) of the converged field. guess: of the initial guess "minao". overlap: S.
        energies: (orbitals,) of the orbitals, ascending.
        cycles: iterations that the field took from the usual guess.
    """

    molecule: Molecule
    fock: np.ndarray
    guess: np.ndarray
    overlap: np.ndarray
    energies: np.ndarray
    cycles: int


def built(molecule: Molecule, basis: str) -> Any:
    """PySCF's molecule. Raises ConfigError for an unknown basis, DataError for an open shell."""
    if basis not in BASES:
        raise unknown("basis", basis, BASES)
    molecule.occupied()
    atoms = [(symbol(int(z)), tuple(r)) for z, r in zip(molecule.numbers, molecule.positions, strict=True)]
    return pyscf("gto").M(atom=atoms, basis=basis, unit="Angstrom", verbose=0)


def field(molecule: Molecule, basis: str, max_cycle: int = 50) -> Any:
    """PySCF's restricted Hartree-Fock method, not yet run."""
    method = pyscf("scf").RHF(built(molecule, basis))
    method.max_cycle = max_cycle
    method.conv_tol = TOLERANCE
    return method


def label(molecule: Molecule, basis: str = "sto-3g", max_cycle: int = 50) -> Sample:
    """Run restricted Hartree-Fock.

    Args:
        max_cycle: iterations after which it is given up.
    Raises:
        DataError: an open shell, an element outside the basis, or no convergence. ConfigError: an unknown basis.
    """
    from .basis import shells

    for element in molecule.numbers:
        shells(basis, int(element))
    method = field(molecule, basis, max_cycle)
    guess = method.get_fock(dm=method.get_init_guess(key="minao"))
    method.kernel()
    if not method.converged:
        raise DataError(
            f"the field of {molecule.electrons} electrons did not converge in {max_cycle} iterations; raise max_cycle, "
            "or leave this geometry out"
        )
    fock = method.get_fock()
    return Sample(molecule, fock, guess, method.get_ovlp(), np.asarray(method.mo_energy), int(method.cycles))


def initial(molecule: Molecule, basis: str) -> tuple[np.ndarray, np.ndarray]:
    """Fock matrix of the guess "minao", and overlap: what a prediction is added to, without running a field."""
    method = field(molecule, basis)
    return method.get_fock(dm=method.get_init_guess(key="minao")), method.get_ovlp()


def iterations(molecule: Molecule, basis: str, fock: np.ndarray | None = None) -> int:
    """Iterations of the field from the density of `fock`, or from the guess "minao".

    Raises DataError where it does not converge.
    """
    method = field(molecule, basis)
    density = None
    if fock is not None:
        from .orbitals import density as of

        density = of(fock, method.get_ovlp(), molecule.occupied())
    method.kernel(dm0=density)
    if not method.converged:
        raise DataError(f"the field did not converge in {method.max_cycle} iterations from this guess")
    if method.cycles is None:
        raise ConfigError("this version of PySCF does not count its iterations; install the pinned one")
    return int(method.cycles)
