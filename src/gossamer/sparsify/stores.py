"""Stores: weights whose trained entries live somewhere else than in their dense parameter, attached to a Sparsifier."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Store(Protocol):
    """Holds trained entries of some weights, for layers that touch only non-zeros (engine/sparse_linear.py).

    Between updates the store's entries are the weights and the dense parameters are out of date; updates, scores and
    saved states read the dense parameters, which the store therefore writes first and reads again afterwards.
    """

    def expect(self, dense_gradient: bool) -> None:
        """The coming step ends with a call of `gradients` (true), or computes gradients of its entries only."""

    def gradients(self) -> dict[str, Tensor]:
        """Dense gradients of the step, by parameter name. Called where `expect` said so."""

    def write_back(self) -> None:
        """Write the entries to the dense parameters, which are 0 elsewhere."""

    def read(self, updated: bool) -> None:
        """Take entries from the dense parameters at the present masks. `updated`: the optimiser's buffers belong to
        the masks before; else they have been loaded together with the masks."""

    def release(self) -> None:
        """The Sparsifier ends: write back and put the plain layers in place again."""
