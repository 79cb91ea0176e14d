"""Architectures: discrete search spaces, counted evaluation, and what searches them."""

from .evaluator import BudgetSpentError, Evaluation, Evaluator
from .slots import OneOf, Subset
from .space import Architecture, SearchSpace, View

__all__ = [
    "Architecture",
    "BudgetSpentError",
    "Evaluation",
    "Evaluator",
    "OneOf",
    "SearchSpace",
    "Subset",
    "View",
]
