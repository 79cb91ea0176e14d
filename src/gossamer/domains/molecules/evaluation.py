"""How well a Hamiltonian network does: errors of matrices and orbitals, and iterations that a guess saves."""

from __future__ import annotations

import numpy as np

from .data import Labelled
from .network import SPHNet
from .orbitals import coefficient_similarity, energy_error, matrix_error
from .scf import iterations


def evaluate(model: SPHNet | None, data: Labelled, fields: int = 0) -> dict[str, float]:
    """Errors of a model, or of the initial guess alone where it is None.

    Args:
        fields: run the field of so many molecules from the prediction, and from the usual guess.
    Returns:
        "h_mae", "energy_mae" in microhartree, "similarity" (1 is perfect), and with fields "iterations" and
        "iterations_minao".
    """
    molecules = [s.molecule for s in data.samples]
    added = model.predict(molecules) if model is not None else [np.zeros_like(s.fock) for s in data.samples]
    rows: dict[str, list[float]] = {"h_mae": [], "energy_mae": [], "similarity": []}
    focks = [sample.guess + more for sample, more in zip(data.samples, added, strict=True)]
    for sample, fock in zip(data.samples, focks, strict=True):
        occupied = sample.molecule.occupied()
        rows["h_mae"].append(1e6 * matrix_error(fock, sample.fock))
        rows["energy_mae"].append(1e6 * energy_error(fock, sample.fock, sample.overlap, occupied))
        rows["similarity"].append(coefficient_similarity(fock, sample.fock, sample.overlap, occupied))
    figures = {name: float(np.mean(values)) for name, values in rows.items()}
    if fields:
        chosen = list(zip(data.samples[:fields], focks, strict=False))
        figures["iterations"] = float(np.mean([iterations(s.molecule, data.basis, f) for s, f in chosen]))
        figures["iterations_minao"] = float(np.mean([s.cycles for s, _ in chosen]))
    return figures
