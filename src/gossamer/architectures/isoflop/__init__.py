"""Sparse-IFT: larger sparse layers at the cost of the dense ones they replace (Thangarasa et al. 2024)."""

from .layers import Doped, Factorized, Parallel
from .sizes import base_scaling, branches, doped_rank, factorized_rank, wide_width
from .spectral import Spectrum, ramanujan_gap, spectra, weighted_gap
from .transform import FAMILIES, IsoFlop, iso_flop, iso_recipe

__all__ = [
    "FAMILIES",
    "Doped",
    "Factorized",
    "IsoFlop",
    "Parallel",
    "Spectrum",
    "base_scaling",
    "branches",
    "doped_rank",
    "factorized_rank",
    "iso_flop",
    "iso_recipe",
    "ramanujan_gap",
    "spectra",
    "weighted_gap",
    "wide_width",
]
