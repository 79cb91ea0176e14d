"""Sparse convolution over (images, channels, height, width), with bias, residual and activation in the same kernel.

    >>> from gossamer.kernels.pack import pack_csr_panel
    >>> weight = torch.zeros(2, 3, 3, 3)
    >>> weight[0, 1, 1, 1] = 2.0
    >>> x = torch.ones(1, 3, 4, 4)
    >>> conv2d(pack_csr_panel(weight), x, kernel=3, padding=1)[0, :, 0, 0].tolist()
    [2.0, 0.0]

A k x k convolution reads shifted rows of one padded copy of its input: no im2col. Dense weights run through the
same kernel as full blocks of 8 (`pack_block(weight, 8)`); so does a network's first convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.epilogue import (
    activation_code,
    address,
    check_floats,
    check_shape,
    finish_reference,
    is_eager,
    runs_native,
)
from gossamer.kernels.formats import MANY_COLUMNS, PackedWeight, dense_operands, matrix

Pair = int | tuple[int, int]


def conv2d(
    weight: PackedWeight,
    x: Tensor,
    *,
    kernel: Pair = 1,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(conv(x, weight) + bias + residual).

    Args:
        weight: csr_panel, csr_code, block or bf16, of an (out, in, kh, kw) weight; bf16 rounds x, too.
        x: (images, in, height, width), float32; copied when not contiguous.
        kernel: (kh, kw) of the weight, or one number for both; likewise stride, padding and dilation.
        bias: (out,).
        residual: of the output's shape, added before the activation.
        activation: none, relu, relu6, hardswish, gelu (exact form, absolute error below 5e-7), silu, sigmoid or
            hardsigmoid.
    Returns:
        (images, out, out_height, out_width), the same bits for any number of threads.
    Raises:
        ConfigError: a dtype, kind, geometry or activation that the kernels do not have.
        ShapeError: channels or sizes disagree.
    """
    pairs = [_pair(name, value) for name, value in (("kernel", kernel), ("stride", stride), ("padding", padding))]
    geometry = [value for pair in (*pairs, _pair("dilation", dilation)) for value in pair]
    code = activation_code(activation)
    check_packed(weight)
    check_floats(x=x, bias=bias, residual=residual)
    if x.dim() != 4 or x.shape[1] * geometry[0] * geometry[1] != weight.columns:
        raise ShapeError(
            f"a weight of {weight.columns} columns and a {geometry[0]} x {geometry[1]} kernel need an input of "
            f"(images, {weight.columns / (geometry[0] * geometry[1]):g}, height, width), got {tuple(x.shape)}"
        )
    shape = _out_shape(x, weight.rows, geometry)
    if min(shape[2:]) < 1:
        raise ShapeError(f"an input of {tuple(x.shape)} is smaller than the kernel {tuple(pairs[0])}")
    check_shape("bias", bias, (weight.rows,))
    check_shape("residual", residual, shape)
    if is_eager(x, bias, residual):
        return _run(weight, x, geometry, bias, residual, code)
    layout = [weight.rows, weight.columns, weight.block, weight.panel]
    arrays = (weight.pointers, weight.indices, weight.values)
    return _conv(x, *arrays, layout, geometry, bias, residual, code)


def conv2d_reference(
    dense: Tensor, x: Tensor, geometry: list[int], bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    """`conv2d` in plain torch, from the dense (out, in * kh * kw) weight."""
    kernel, stride, padding, dilation = (tuple(geometry[i : i + 2]) for i in range(0, 8, 2))
    if dense.numel() == 0:
        return finish_reference(x.new_zeros(_out_shape(x, dense.shape[0], geometry)), bias, residual, code, 1)
    y = F.conv2d(x, dense.view(dense.shape[0], x.shape[1], *kernel), None, stride, padding, dilation)
    return finish_reference(y, bias, residual, code, 1)


def check_packed(weight: PackedWeight) -> None:
    """Raises ConfigError unless the weight is of a kind for products with many columns."""
    if weight.kind not in MANY_COLUMNS:
        raise ConfigError(f"this needs a csr_panel, block or bf16 weight, not {weight.kind}; gemv takes {weight.kind}")


def _pair(name: str, value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    least = 0 if name == "padding" else 1
    if len(pair) != 2 or min(pair) < least:
        raise ConfigError(f"{name} must be one or two numbers of at least {least}, got {value}")
    return pair


def _out_shape(x: Tensor, rows: int, geometry: list[int]) -> tuple[int, int, int, int]:
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    height = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    return x.shape[0], rows, height, width


def _run(
    weight: PackedWeight, x: Tensor, geometry: list[int], bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    extension = native.extension() if runs_native(x, bias, residual) else None
    if extension is None:
        return conv2d_reference(*dense_operands(weight, x), geometry, bias, residual, code)
    x, y = x.contiguous(), torch.empty(_out_shape(x, weight.rows, geometry))
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3], *geometry)
    after = (address(bias), address(residual), code, native.threads())
    extension.conv(matrix(extension, weight), shape, x.data_ptr(), y.data_ptr(), *after)
    return y


@torch.library.custom_op("gossamer::sparse_conv2d", mutates_args=())
def _conv(
    x: Tensor,
    pointers: Tensor,
    indices: Tensor,
    values: Tensor,
    layout: list[int],
    geometry: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return _run(packed_of(layout, pointers, indices, values), x, geometry, bias, residual, activation)


@_conv.register_fake
def _(
    x: Tensor,
    pointers: Tensor,
    indices: Tensor,
    values: Tensor,
    layout: list[int],
    geometry: list[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty(_out_shape(x, layout[0], geometry))


def packed_of(layout: list[int], pointers: Tensor, indices: Tensor, values: Tensor) -> PackedWeight:
    """The weight of a registered operator's arguments, checked again."""
    rows, columns, block, panel = layout
    none = torch.empty(0, dtype=torch.int64)
    kind = "bf16" if values.dtype is torch.bfloat16 else "block" if block > 1 else "csr_panel"
    return PackedWeight(kind, rows, columns, block, panel, pointers, indices, values, none)
