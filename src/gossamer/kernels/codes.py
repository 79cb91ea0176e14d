"""Sparse codes: rows with few non-zeros, and the products that training and decoding with a dictionary need.

    >>> code = SparseCode.of(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
    >>> code.indices.tolist(), code.offsets.tolist()
    ([1, 0, 2], [0, 1, 3])
    >>> decode(code, torch.eye(3)).tolist()
    [[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]

A product gathers and adds the chosen rows of the dictionary (an embedding bag with weights), so its cost grows with
the non-zeros and not with the size of the dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ShapeError

_CPU_PIECE, _GPU_PIECE = 1 << 16, 1 << 24  # numbers that `dots` gathers at once


@dataclass(frozen=True)
class SparseCode:
    """A (rows, columns) matrix by its chosen entries, row after row.

    Attributes:
        indices: (n,) int64, the column of each entry, ascending within a row.
        values: (n,), any float type; may require a gradient.
        offsets: (rows + 1,) int64; row i owns the entries offsets[i] : offsets[i + 1].
        columns: width of the matrix.
    """

    indices: Tensor
    values: Tensor
    offsets: Tensor
    columns: int

    @classmethod
    def of(cls, dense: Tensor, mask: Tensor | None = None) -> SparseCode:
        """The entries of `dense` (rows, columns) where `mask` is True; without a mask, the non-zero ones.

        Raises:
            ShapeError: no matrix, or a mask of another shape.
        """
        mask = dense != 0 if mask is None else mask
        if dense.dim() != 2 or mask.shape != dense.shape:
            raise ShapeError(
                f"a code needs a matrix and a mask of its shape, got {tuple(dense.shape)}, {tuple(mask.shape)}"
            )
        return cls(mask.nonzero()[:, 1], dense[mask], _offsets(mask.sum(1)), dense.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.offsets) - 1, self.columns

    def rows(self) -> Tensor:
        """(n,) int64, the row of each entry."""
        count = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(count), device=count.device), count)

    def dense(self) -> Tensor:
        """The (rows, columns) matrix."""
        return self.values.new_zeros(self.shape).index_put((self.rows(), self.indices), self.values)

    def transpose(self) -> SparseCode:
        """The code of the transposed matrix."""
        order = torch.argsort(self.indices, stable=True)
        offsets = _offsets(torch.bincount(self.indices, minlength=self.columns))
        return SparseCode(self.rows()[order], self.values[order], offsets, len(self.offsets) - 1)

    def only(self, first: int, last: int) -> SparseCode:
        """The columns first ... last - 1, numbered from 0."""
        chosen = (self.indices >= first) & (self.indices < last)
        offsets = _offsets(torch.bincount(self.rows()[chosen], minlength=len(self.offsets) - 1))
        return SparseCode(self.indices[chosen] - first, self.values[chosen], offsets, last - first)

    def with_values(self, values: Tensor) -> SparseCode:
        """The same places with other values."""
        return SparseCode(self.indices, values, self.offsets, self.columns)


def _offsets(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))


def decode(code: SparseCode, dictionary: Tensor) -> Tensor:
    """code @ dictionary, differentiable in the code's values and the dictionary.

    Args:
        dictionary: (columns, width), of the dtype of the values.
    Returns:
        (rows, width).
    Raises:
        ShapeError: the dictionary has another number of rows than the code has columns.
    """
    if dictionary.dim() != 2 or dictionary.shape[0] != code.columns:
        got = tuple(dictionary.shape)
        raise ShapeError(f"a code of {code.columns} columns needs as many dictionary rows, got {got}")
    out: Tensor = _Decode.apply(code.values, dictionary, code)
    return out


def decode_reference(code: SparseCode, dictionary: Tensor) -> Tensor:
    """`decode` as a dense product."""
    return code.dense() @ dictionary


def encode(x: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, mask: Tensor) -> SparseCode:
    """The chosen entries of relu(x @ weight.T + bias) as a code, differentiable in x, weight and bias.

    The gradient passes through chosen entries alone, so the backward pass costs as little as a sparse product.

    Args:
        x: (rows, width). weight: (columns, width). bias: (columns,).
        pre: (rows, columns), the product x @ weight.T + bias as already computed, without gradient.
        mask: bool, of the shape of `pre`: what is chosen.
    """
    where = SparseCode.of(pre.detach().relu(), mask)
    values: Tensor = _Encode.apply(x, weight, bias, where)
    return where.with_values(values)


def dots(code: SparseCode, left: Tensor, right: Tensor) -> Tensor:
    """left[row] . right[column] for every entry of the code: (n,).

    The rows are gathered in pieces that stay in a CPU's cache, which is ten times faster than all at once.
    """
    most = _CPU_PIECE if left.is_cpu else _GPU_PIECE
    step = max(1, most // max(1, left.shape[1]))
    pieces = zip(code.rows().split(step), code.indices.split(step), strict=True)
    found = [torch.linalg.vecdot(left.index_select(0, r), right.index_select(0, c)) for r, c in pieces]
    return torch.cat(found) if found else left.new_zeros(0)


def dots_reference(code: SparseCode, left: Tensor, right: Tensor) -> Tensor:
    """`dots` as a dense product."""
    return (left @ right.t())[code.rows(), code.indices]


def _bag(code: SparseCode, dictionary: Tensor) -> Tensor:
    if not len(code.indices):
        return dictionary.new_zeros(code.shape[0], dictionary.shape[1])
    return F.embedding_bag(
        code.indices, dictionary.contiguous(), code.offsets[:-1], mode="sum", per_sample_weights=code.values
    )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dictionary: Tensor, code: SparseCode) -> Tensor:
        code = code.with_values(values.detach())
        ctx.save_for_backward(values, dictionary)
        ctx.code = code
        return _bag(code, dictionary.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        _, dictionary = ctx.saved_tensors
        grad = grad.contiguous()
        to_values = dots(ctx.code, grad, dictionary) if ctx.needs_input_grad[0] else None
        to_dictionary = _bag(ctx.code.transpose(), grad) if ctx.needs_input_grad[1] else None
        return to_values, to_dictionary, None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, code: SparseCode) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.code = code
        return code.values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        code = ctx.code.with_values(torch.where(ctx.code.values > 0, grad, 0.0))
        to_x = _bag(code, weight) if ctx.needs_input_grad[0] else None
        to_weight = _bag(code.transpose(), x) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(weight[:, 0]).index_add_(0, code.indices, code.values)
        return to_x, to_weight, to_bias if ctx.needs_input_grad[2] else None, None
