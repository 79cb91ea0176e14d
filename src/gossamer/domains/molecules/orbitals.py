"""From Hamiltonians to orbitals, and how well a prediction does (SPHNet, section 3.6)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, eigh

from gossamer.errors import NumericsError, ShapeError


def solve(fock: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (orbitals,), ascending, and coefficients (orbitals, orbitals), one column each: F C = S C e.

    Raises:
        ShapeError: not two square matrices of one size. NumericsError: NaN, or S is not positive definite.
    """
    if fock.ndim != 2 or fock.shape[0] != fock.shape[1] or fock.shape != overlap.shape:
        raise ShapeError(f"Fock matrix {fock.shape} and overlap {overlap.shape} must be square and of one size")
    if not (np.isfinite(fock).all() and np.isfinite(overlap).all()):
        raise NumericsError("the Fock matrix or the overlap holds NaN or infinity")
    try:
        energies, coefficients = eigh(fock, overlap)
    except LinAlgError as error:
        raise NumericsError(f"the overlap is not positive definite ({error}); two atoms may coincide") from error
    return energies, coefficients


def density(fock: np.ndarray, overlap: np.ndarray, occupied: int) -> np.ndarray:
    """Closed-shell density 2 C_occ C_occ' of a Fock matrix: an initial guess for PySCF's `kernel(dm0=...)`."""
    occupied_columns = solve(fock, overlap)[1][:, :occupied]
    return 2 * occupied_columns @ occupied_columns.T


def matrix_error(fock: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of all entries, in hartree."""
    return float(np.abs(fock - truth).mean())


def energy_error(fock: np.ndarray, truth: np.ndarray, overlap: np.ndarray, occupied: int) -> float:
    """Mean absolute difference of the occupied orbital energies, in hartree."""
    return float(np.abs(solve(fock, overlap)[0] - solve(truth, overlap)[0])[:occupied].mean())


def coefficient_similarity(fock: np.ndarray, truth: np.ndarray, overlap: np.ndarray, occupied: int) -> float:
    """Mean |cosine| of the coefficient vectors of the occupied orbitals, paired by energy; their sign is free.

    Orbitals of equal energy may be mixed at will, which lowers it although nothing is wrong.
    """
    found, wanted = (solve(matrix, overlap)[1][:, :occupied] for matrix in (fock, truth))
    lengths = np.linalg.norm(found, axis=0) * np.linalg.norm(wanted, axis=0)
    return float((np.abs((found * wanted).sum(0)) / lengths).mean())
