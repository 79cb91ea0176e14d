"""Public batteries: what every pattern, score, allocation, schedule, update, recipe and sparsifier must satisfy.

A part that somebody writes outside this library is tested by the same lines:

    >>> from gossamer.testing import check_pattern
    >>> from gossamer.sparsify.patterns import Block
    >>> check_pattern(Block(2, 1))
"""

from .parts import check_allocation, check_pattern, check_schedule, check_score, check_update
from .recipes import check_recipe, check_sparsifier

__all__ = [
    "check_allocation",
    "check_pattern",
    "check_recipe",
    "check_schedule",
    "check_score",
    "check_sparsifier",
    "check_update",
]
