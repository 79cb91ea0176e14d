"""Hamiltonians of molecules: labels by PySCF, SPHNet with sparse gates, orbitals from a prediction."""

from .basis import BASES, Layout
from .cue import on_cuequivariance
from .data import GEOMETRIES, Labelled, geometries, load, make, save
from .evaluation import evaluate
from .foreign import GatedTensorProduct
from .geometry_files import read_qh9, read_sdf, read_xyz
from .model_files import load_model, save_model
from .network import Shape, SPHNet
from .orbitals import coefficient_similarity, density, energy_error, matrix_error, solve
from .pairs import PairGate
from .paths import CHOICES, PathGate
from .product import PathProduct, SparseTensorProduct
from .qhnet import QHNet
from .scf import Molecule, Sample, initial, iterations, label
from .schedule import ThreePhase
from .training import Settings, train

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
    "QHNet",
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
    "on_cuequivariance",
    "read_qh9",
    "read_sdf",
    "read_xyz",
    "save",
    "save_model",
    "solve",
    "train",
]
