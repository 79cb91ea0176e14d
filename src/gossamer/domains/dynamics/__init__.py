"""Sparse neural dynamics: ReLU models with few ReLUs left, and planning over them to global optimality."""

from .branch import branch_and_bound
from .control import MPC, Episode
from .encode import bounds_of, interval
from .folded import Folded, fold
from .learning import Budget, Ladder, fit, magnitude, rmse, sparsify
from .model import GatedReLUMLP
from .planner import MILPPlanner
from .problem import Dynamics, Goal, Obstacle, Plan, Problem, Term, residual
from .program import Program, write
from .sampling import CEM, MPPI, PLANNERS, GradientPlanner
from .systems import Pushing, tent

__all__ = [
    "CEM",
    "MPC",
    "MPPI",
    "PLANNERS",
    "Budget",
    "Dynamics",
    "Episode",
    "Folded",
    "GatedReLUMLP",
    "Goal",
    "GradientPlanner",
    "Ladder",
    "MILPPlanner",
    "Obstacle",
    "Plan",
    "Problem",
    "Program",
    "Pushing",
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
