"""Optimal transport with a limit on the non-zeros of each column: exact, batched, differentiable, on any device."""

from gossamer.transport.autograd import ot_loss, ot_plan
from gossamer.transport.colours import ColourTransfer, Palette, colour_transfer, palette
from gossamer.transport.regularizers import Entropic, KSparse, Quadratic, Regularizer, Unregularised
from gossamer.transport.result import Transport
from gossamer.transport.routing import Assignment, assign, capacity_of
from gossamer.transport.solve import solve_ot
from gossamer.transport.solvers import LBFGS, Adam, GradientAscent, Solver

__all__ = [
    "LBFGS",
    "Adam",
    "Assignment",
    "ColourTransfer",
    "Entropic",
    "GradientAscent",
    "KSparse",
    "Palette",
    "Quadratic",
    "Regularizer",
    "Solver",
    "Transport",
    "Unregularised",
    "assign",
    "capacity_of",
    "colour_transfer",
    "ot_loss",
    "ot_plan",
    "palette",
    "solve_ot",
]
