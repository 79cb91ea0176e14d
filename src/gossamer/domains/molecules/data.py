"""Sets of labelled molecules: made by PySCF, stored as .npz without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from gossamer.errors import DataError
from gossamer.runs.files import atomic

from .basis import Layout
from .orbitals import solve
from .scf import Molecule, Sample, initial, label

VERSION = 1
FIELDS = ("fock", "guess", "overlap", "energies")
# Equilibrium-like geometries in angstrom: experimental bond lengths and angles, rounded.
GEOMETRIES: dict[str, tuple[str, list[list[float]]]] = {
    "water": ("O H H", [[0, 0, 0], [0.757, 0.587, 0], [-0.757, 0.587, 0]]),
    "hydrogen-fluoride": ("F H", [[0, 0, 0], [0.917, 0, 0]]),
    "ammonia": ("N H H H", [[0, 0, 0.1], [0.94, 0, -0.27], [-0.47, 0.81, -0.27], [-0.47, -0.81, -0.27]]),
    "water-dimer": (
        "O H H O H H",
        [[0, 0, 0], [0.757, 0.587, 0], [-0.757, 0.587, 0], [0, -2.9, 0], [0, -1.94, 0], [0.76, -3.2, 0.5]],
    ),
}


@dataclass(frozen=True)
class Labelled:
    """Samples of one basis."""

    basis: str
    samples: tuple[Sample, ...]

    @property
    def layout(self) -> Layout:
        """The layout of all elements that occur."""
        return Layout(self.basis, tuple(sorted({int(e) for s in self.samples for e in s.molecule.numbers})))

    def split(self, training: int) -> tuple[Labelled, Labelled]:
        """The first `training` samples, and the rest. Raises DataError where one of the two is empty."""
        if not 0 < training < len(self.samples):
            raise DataError(f"cannot train on {training} of {len(self.samples)} molecules and test on the rest")
        return Labelled(self.basis, self.samples[:training]), Labelled(self.basis, self.samples[training:])


def geometries(name: str, count: int, noise: float = 0.06, seed: int = 0) -> list[Molecule]:
    """`count` copies of a known molecule, each turned at random, atoms moved by Gaussian noise (angstrom).

    Raises ConfigError for an unknown name.
    """
    from gossamer.errors import unknown

    if name not in GEOMETRIES:
        raise unknown("molecule", name, GEOMETRIES)
    symbols, start = GEOMETRIES[name]
    rng = np.random.default_rng(seed)
    turns = Rotation.random(count, rng=rng)
    found = []
    for turn in turns:
        moved = np.asarray(start) + noise * rng.standard_normal((len(start), 3))
        found.append(Molecule.of(symbols, turn.apply(moved)))
    return found


def make(
    molecules: Sequence[Molecule],
    basis: str = "sto-3g",
    *,
    max_cycle: int = 50,
    skip: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Labelled:
    """Label molecules by restricted Hartree-Fock.

    Args:
        max_cycle: iterations after which a field is given up.
        skip: leave out what cannot be labelled (open shells, no convergence), and say so, in place of raising.
    Raises:
        DataError: see `scf.label`; or nothing is left.
    """
    samples = []
    for position, molecule in enumerate(molecules):
        try:
            samples.append(label(molecule, basis, max_cycle))
        except DataError as error:
            if not skip:
                raise
            say(f"molecule {position} left out: {error}")
    if not samples:
        raise DataError("no molecule could be labelled")
    return Labelled(basis, tuple(samples))


def save(path: str | Path, data: Labelled) -> Path:
    """Write a set as .npz, atomically."""
    path = Path(path)
    samples = data.samples
    flat: dict[str, Any] = {name: np.concatenate([getattr(s, name).ravel() for s in samples]) for name in FIELDS}
    head = json.dumps({"version": VERSION, "basis": data.basis, "energy": "hartree", "length": "angstrom"})
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            head=np.array(head),
            atoms=np.array([len(s.molecule.numbers) for s in samples]),
            orbitals=np.array([len(s.energies) for s in samples]),
            cycles=np.array([s.cycles for s in samples]),
            numbers=np.concatenate([s.molecule.numbers for s in samples]),
            positions=np.concatenate([s.molecule.positions for s in samples]),
            **flat,
        )
    return path


def load(path: str | Path) -> Labelled:
    """Read what `save` wrote. Raises DataError for a missing, truncated or foreign file."""
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        head = json.loads(str(held["head"]))
        if head["version"] != VERSION:
            raise DataError(f"{path} has version {head['version']}; this release reads {VERSION}: make it anew")
        return Labelled(head["basis"], tuple(_samples(held)))
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, IndexError) as error:
        raise DataError(f"{path} is no set of molecules ({error}); `gossamer molecules make` makes one") from error
    except Exception as error:  # zipfile and zlib raise their own
        raise DataError(f"{path} is damaged ({error}); make it anew") from error


def _samples(held: dict[str, np.ndarray]) -> list[Sample]:
    ends = np.cumsum(held["atoms"])
    at, line, samples = 0, 0, []
    for end, atoms, n, cycles in zip(ends, held["atoms"], held["orbitals"], held["cycles"], strict=True):
        molecule = Molecule(held["numbers"][end - atoms : end], held["positions"][end - atoms : end])
        square = {name: held[name][at : at + n * n].reshape(n, n) for name in FIELDS[:3]}
        samples.append(Sample(molecule, **square, energies=held["energies"][line : line + n], cycles=int(cycles)))
        at, line = at + n * n, line + n
    return samples


def with_guess(pairs: Sequence[tuple[Molecule, np.ndarray]], basis: str = "def2-svp") -> Labelled:
    """Add to foreign Fock matrices what training needs: the Hartree-Fock guess "minao", overlap, and energies.

    The matrices of QH9 are of a density functional; the network then also learns the difference to Hartree-Fock.
    """
    samples = []
    for molecule, fock in pairs:
        guess, overlap = initial(molecule, basis)
        samples.append(Sample(molecule, fock, guess, overlap, solve(fock, overlap)[0], 0))
    return Labelled(basis, tuple(samples))
