"""Hamiltonians of molecules: labels by PySCF, SPHNet with sparse gates, orbitals from a prediction."""

from .basis import BASES, Layout
from .data import GEOMETRIES, Labelled, geometries, load, make, read_qh9, read_sdf, read_xyz, save
from .foreign import GatedTensorProduct
from .network import Shape, SPHNet
from .orbitals import coefficient_similarity, density, energy_error, matrix_error, solve
from .pairs import PairGate
from .paths import CHOICES, PathGate
from .product import PathProduct, SparseTensorProduct
from .scf import Molecule, Sample, initial, iterations, label
from .schedule import ThreePhase
from .training import Settings, evaluate, load_model, save_model, train

__all__ = [
    "BASES",
    "CHOICES",
    "GEOMETRIES",
    "GatedTensorProduct",
    "Labelled",
    "Layout",
    "Molecule",
    "PairGate",
    "PathGate",
    "PathProduct",
    "SPHNet",
    "Sample",
    "Settings",
    "Shape",
    "SparseTensorProduct",
    "ThreePhase",
    "coefficient_similarity",
    "density",
    "energy_error",
    "evaluate",
    "geometries",
    "initial",
    "iterations",
    "label",
    "load",
    "load_model",
    "make",
    "matrix_error",
    "read_qh9",
    "read_sdf",
    "read_xyz",
    "save",
    "save_model",
    "solve",
    "train",
]
