"""The algebra of sparse training: groups, patterns, scores, allocations, schedules, updates, and what binds them."""

from .groups import Group, Member, Select, select
from .recipe import Recipe
from .sparsifier import Sparsifier

__all__ = ["Group", "Member", "Recipe", "Select", "Sparsifier", "select"]
