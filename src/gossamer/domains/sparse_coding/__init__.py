"""Probabilistic sparse coding: dictionary, prior and noise are learned, and every code comes with its posterior."""

from .anneal import Anneal
from .bars import Bars, Match, bar_dictionary, bars, match
from .checks import SparseCodingWarning
from .models import (
    BinarySparseCoding,
    DiscreteSparseCoding,
    MaximalCauses,
    MaxMagnitudeCauses,
    SpikeSlabSparseCoding,
    TernarySparseCoding,
)
from .posterior import Posterior

__all__ = [
    "Anneal",
    "Bars",
    "BinarySparseCoding",
    "DiscreteSparseCoding",
    "Match",
    "MaxMagnitudeCauses",
    "MaximalCauses",
    "Posterior",
    "SparseCodingWarning",
    "SpikeSlabSparseCoding",
    "TernarySparseCoding",
    "bar_dictionary",
    "bars",
    "match",
]
