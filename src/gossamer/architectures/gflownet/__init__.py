"""Order-preserving GFlowNets: sample discrete objects by the order of their scores alone (Chen & Mauch 2024)."""

from .balance import Flow
from .envs import Env, HyperGrid, Sequences, SlotFill
from .exact import exact_distribution
from .network import GFlowNet
from .order import OrderLoss, listwise, non_dominated, pairwise
from .policies import Policy, Tabular
from .quality import hypervolume, igd_plus, r2
from .search import search_gflownet
from .train import Training, fit

__all__ = [
    "Env",
    "Flow",
    "GFlowNet",
    "HyperGrid",
    "OrderLoss",
    "Policy",
    "Sequences",
    "SlotFill",
    "Tabular",
    "Training",
    "exact_distribution",
    "fit",
    "hypervolume",
    "igd_plus",
    "listwise",
    "non_dominated",
    "pairwise",
    "r2",
    "search_gflownet",
]
