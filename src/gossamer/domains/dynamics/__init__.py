"""Sparse neural dynamics: ReLU models with few ReLUs left, and planning over them to global optimality."""

from .branch import branch_and_bound
from .control import MPC, Episode
from .encode import bounds_of, interval
from .folded import Folded, fold
from .graph import GraphNetwork, Round
from .learning import Budget, Ladder, fit, magnitude, rmse, sparsify
from .model import GatedReLUMLP
from .particles import Particles
from .planner import MILPPlanner
from .problem import Goal, Obstacle, Plan, Problem
from .program import Program, write
from .sampling import CEM, MPPI, PLANNERS, GradientPlanner
from .systems import Pushing, tent
from .transition import Chain, Dynamics, Term, residual

__all__ = [
    "CEM",
    "MPC",
    "MPPI",
    "PLANNERS",
    "Budget",
    "Chain",
    "Dynamics",
    "Episode",
    "Folded",
    "GatedReLUMLP",
    "Goal",
    "GradientPlanner",
    "GraphNetwork",
    "Ladder",
    "MILPPlanner",
    "Obstacle",
    "Particles",
    "Plan",
    "Problem",
    "Program",
    "Pushing",
    "Round",
    "Term",
    "bounds_of",
    "branch_and_bound",
    "fit",
    "fold",
    "interval",
    "magnitude",
    "residual",
    "rmse",
    "sparsify",
    "tent",
    "write",
]
