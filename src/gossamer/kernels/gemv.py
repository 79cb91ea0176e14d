"""Sparse weight times a vector, or a few: a fully connected layer at batch 1, bound by the bytes of the weight.

    >>> from gossamer.kernels.pack import pack_bitmap
    >>> weight = pack_bitmap(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> gemv(weight, torch.tensor([1.0, 4.0])).tolist()
    [8.0, 1.0]

`bitmap` is faster down to a density of about 0.15, `csr16` below; bfloat16 values halve the bytes of a bitmap.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels.epilogue import (
    activation_code,
    check_layer,
    finish_reference,
    is_eager,
    run_native,
)
from gossamer.kernels.formats import PackedWeight, matrix


def gemv(
    weight: PackedWeight,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x @ weight.T + bias + residual), one vector after another.

    Args:
        weight: bitmap or csr16, (out, in).
        x: (..., in), float32.
        bias: (out,).
        residual: (..., out), added before the activation.
        activation: none, relu, relu6, hardswish, gelu, silu, sigmoid or hardsigmoid.
    Returns:
        (..., out), float32; the same bits for any number of threads.
    Raises:
        ConfigError: a dtype, kind or activation that the kernels do not have.
        ShapeError: sizes disagree.
    """
    code = activation_code(activation)
    if weight.kind not in ("bitmap", "csr16"):
        raise ConfigError(f"gemv needs a bitmap or csr16 weight, not {weight.kind}; linear takes {weight.kind}")
    check_layer(weight.rows, weight.columns, x, bias, residual)
    if is_eager(x, bias, residual):
        return _run(weight, x, bias, residual, code)
    arrays = (weight.pointers, weight.indices, weight.values, weight.bits)
    return _gemv(x, *arrays, [weight.rows, weight.columns], bias, residual, code)


def gemv_reference(dense: Tensor, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    """`gemv` in plain torch, from the dense (out, in) weight."""
    return finish_reference(x @ dense.float().t(), bias, residual, code, -1)


def _run(weight: PackedWeight, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int) -> Tensor:
    return run_native(
        lambda extension: partial(extension.gemv, matrix(extension, weight), weight.values.dtype is torch.bfloat16),
        lambda: gemv_reference(weight.unpack().to(x.device), x, bias, residual, code),
        weight.rows, x, bias, residual, code,
    )  # fmt: skip


@torch.library.custom_op("gossamer::sparse_gemv", mutates_args=())
def _gemv(
    x: Tensor,
    pointers: Tensor,
    indices: Tensor,
    values: Tensor,
    bits: Tensor,
    shape: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    rows, columns = shape
    kind = "bitmap" if bits.numel() else "csr16"
    weight = PackedWeight(kind, rows, columns, 1, max(1, columns), pointers, indices, values, bits)
    return _run(weight, x, bias, residual, activation)


@_gemv.register_fake
def _(
    x: Tensor,
    pointers: Tensor,
    indices: Tensor,
    values: Tensor,
    bits: Tensor,
    shape: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))
