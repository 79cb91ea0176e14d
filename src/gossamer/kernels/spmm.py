"""Sparse weight times dense activations: over columns (`spmm`), or as a fully connected layer (`linear`).

>>> from gossamer.kernels.pack import pack_csr_panel
>>> weight = pack_csr_panel(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
>>> spmm(weight, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
[[8.0, 10.0, 12.0], [1.0, 2.0, 3.0]]
>>> linear(weight, torch.tensor([[1.0, 4.0]]), bias=torch.tensor([0.0, -3.0]), activation="relu").tolist()
[[8.0, 0.0]]
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.conv import check_packed, conv2d, packed_of
from gossamer.kernels.epilogue import (
    activation_code,
    check_layer,
    check_shape,
    finish_reference,
    is_eager,
    run_native,
)
from gossamer.kernels.formats import PackedWeight, dense_operands, matrix


def spmm(
    weight: PackedWeight,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(weight @ x + bias[:, None] + residual): a 1 x 1 convolution over flattened pixels.

    Args:
        weight: csr_panel, csr_code, block or bf16, (out, in); bf16 rounds x, too.
        x: (in, pixels) or (images, in, pixels), float32.
        bias: (out,).
        residual: of the output's shape, added before the activation.
        activation: none, relu, relu6, hardswish, gelu, silu, sigmoid or hardsigmoid.
    Returns:
        (out, pixels) or (images, out, pixels).
    Raises:
        ConfigError, ShapeError: as `conv2d`.
    """
    if x.dim() not in (2, 3) or x.shape[-2] != weight.columns:
        raise ShapeError(f"a weight of {weight.columns} columns needs (.., {weight.columns}, n), got {tuple(x.shape)}")
    images, pixels = (1 if x.dim() == 2 else x.shape[0]), x.shape[-1]
    shape = (*x.shape[:-2], weight.rows, pixels)
    check_shape("residual", residual, shape)
    if pixels == 0:
        return x.new_empty(shape)
    added = None if residual is None else residual.reshape(images, weight.rows, 1, pixels)
    y = conv2d(weight, x.reshape(images, weight.columns, 1, pixels), bias=bias, residual=added, activation=activation)
    return y.reshape(shape)


def linear(
    weight: PackedWeight,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x @ weight.T + bias + residual): a fully connected layer with a batch.

    Args:
        weight: csr_panel, csr_code, block or bf16, (out, in); bf16 rounds x, too.
        x: (..., in), float32. A single vector is faster through `gemv`.
        bias: (out,).
        residual: (..., out), added before the activation.
        activation: none, relu, relu6, hardswish, gelu, silu, sigmoid or hardsigmoid.
    Returns:
        (..., out).
    Raises:
        ConfigError, ShapeError: as `conv2d`.
    """
    code = activation_code(activation)
    check_packed(weight)
    check_layer(weight.rows, weight.columns, x, bias, residual)
    if is_eager(x, bias, residual):
        return _run(weight, x, bias, residual, code)
    layout = [weight.rows, weight.columns, weight.block, weight.panel]
    return _linear(x, weight.pointers, weight.indices, weight.values, layout, bias, residual, code)


def linear_reference(dense: Tensor, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    """`linear` in plain torch, from the dense (out, in) weight."""
    return finish_reference(x @ dense.t(), bias, residual, code, -1)


def _run(weight: PackedWeight, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    return run_native(
        lambda extension: partial(extension.linear, matrix(extension, weight)),
        lambda: linear_reference(*dense_operands(weight, x), bias, residual, code),
        weight.rows, x, bias, residual, code,
    )  # fmt: skip


@torch.library.custom_op("gossamer::sparse_linear", mutates_args=())
def _linear(
    x: Tensor,
    pointers: Tensor,
    indices: Tensor,
    values: Tensor,
    layout: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return _run(packed_of(layout, pointers, indices, values), x, bias, residual, activation)


@_linear.register_fake
def _(
    x: Tensor,
    pointers: Tensor,
    indices: Tensor,
    values: Tensor,
    layout: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], layout[0]))
