"""Branch prediction: traces, predictors, and sparse models of long-range correlations that a side table can hold."""

from .encode import Encoded, encode, play_float
from .features import Window
from .identify import Finding, Search, SparseReport, find_sparse
from .predictors import (
    PREDICTORS,
    TAGE,
    TAGESCL,
    Bimodal,
    Gshare,
    HashedPerceptron,
    Perceptron,
    Predictor,
    Static,
    Tournament,
    build,
)
from .readers import read, write
from .side import Hybrid, Layout, SideTable
from .simulate import BranchRow, Result, simulate
from .trace import Trace

__all__ = [
    "PREDICTORS",
    "TAGE",
    "TAGESCL",
    "Bimodal",
    "BranchRow",
    "Encoded",
    "Finding",
    "Gshare",
    "HashedPerceptron",
    "Hybrid",
    "Layout",
    "Perceptron",
    "Predictor",
    "Result",
    "Search",
    "SideTable",
    "SparseReport",
    "Static",
    "Tournament",
    "Trace",
    "Window",
    "build",
    "encode",
    "find_sparse",
    "play_float",
    "read",
    "simulate",
    "write",
]
