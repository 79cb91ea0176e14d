"""Products of a sparse matrix of fixed structure with dense ones, with gradients, in CSR: fewer entries, less time."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


class Structure:
    """Where the entries of a sparse matrix are; their values come with each product.

    Args:
        rows, cols: (nnz,) int64, no entry twice. shape: of the matrix.
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> None:
        self.rows, self.cols, self.shape = rows, cols, shape
        self._ahead = _compressed(rows, cols, shape)
        self._back = _compressed(cols, rows, (shape[1], shape[0]))

    def matmul(self, values: Tensor, dense: Tensor) -> Tensor:
        """The matrix with these values (nnz,) times `dense` (shape[1], k); gradients flow to both."""
        return _Product.apply(self, values, dense)

    def _apply(self, values: Tensor, dense: Tensor, transposed: bool = False) -> Tensor:
        order, crow, col = self._back if transposed else self._ahead
        shape = (self.shape[1], self.shape[0]) if transposed else self.shape
        with warnings.catch_warnings():  # torch calls CSR a beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            matrix = torch.sparse_csr_tensor(crow, col, values[order], shape, check_invariants=False)
        return matrix @ dense


def _compressed(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Order of the entries by row and column, where each row begins, and the columns in that order."""
    order = (rows * shape[1] + cols).argsort()
    crow = torch.zeros(shape[0] + 1, dtype=torch.int64, device=rows.device)
    crow[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0)
    return order, crow, cols[order].contiguous()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, structure: Structure, values: Tensor, dense: Tensor) -> Tensor:
        ctx.structure = structure
        ctx.save_for_backward(values, dense)
        return structure._apply(values, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        values, dense = ctx.saved_tensors
        structure: Structure = ctx.structure
        gradient = gradients[0].contiguous()
        of_values = of_dense = None
        if ctx.needs_input_grad[1]:
            of_values = (gradient[structure.rows] * dense[structure.cols]).sum(1)
        if ctx.needs_input_grad[2]:
            of_dense = structure._apply(values, gradient, transposed=True)
        return None, of_values, of_dense


class SparseFeatures:
    """A fixed sparse matrix, such as bags of words: `features @ weight` costs its non-zeros only.

    Args:
        dense: (nodes, features).
    """

    def __init__(self, dense: Tensor) -> None:
        rows, cols = dense.nonzero(as_tuple=True)
        self.shape = (dense.shape[0], dense.shape[1])
        self.values = dense[rows, cols]
        self._structure = Structure(rows, cols, self.shape)

    def __matmul__(self, weight: Tensor) -> Tensor:
        return self._structure.matmul(self.values, weight)
