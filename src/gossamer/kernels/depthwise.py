"""Depthwise 3 x 3 and 5 x 5 convolution with bias, residual and activation in the same kernel.

>>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
>>> depthwise_conv2d(torch.ones(1, 1, 3, 3), x, padding=1)[0, 0, 1].tolist()
[21.0, 36.0, 27.0]
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

KERNELS, STRIDES = (3, 5), (1, 2)


def depthwise_conv2d(
    weight: Tensor,
    x: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(conv(x, weight, groups=channels) + bias + residual).

    Args:
        weight: (channels, 1, k, k) with k 3 or 5, float32.
        x: (images, channels, height, width), float32; copied when not contiguous.
        stride: 1 or 2.
        padding: 0 .. k - 1.
        bias: (channels,).
        residual: of the output's shape, added before the activation.
        activation: none, relu, relu6, hardswish, gelu, silu, sigmoid or hardsigmoid.
    Raises:
        ConfigError: a dtype, kernel, stride, padding or activation that the kernels do not have.
        ShapeError: channels or sizes disagree.
    """
    code = activation_code(activation)
    check_floats(weight=weight, x=x, bias=bias, residual=residual)
    k = weight.shape[-1]
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[2] != k or k not in KERNELS:
        raise ConfigError(f"depthwise weights are (channels, 1, k, k) with k 3 or 5, got {tuple(weight.shape)}")
    if stride not in STRIDES or not 0 <= padding < k:
        raise ConfigError(f"depthwise {k} x {k} runs at stride 1 or 2 and padding 0..{k - 1}, got {stride}, {padding}")
    if x.dim() != 4 or x.shape[1] != weight.shape[0]:
        raise ShapeError(f"{weight.shape[0]} filters need (images, {weight.shape[0]}, h, w), got {tuple(x.shape)}")
    shape = _out_shape(x, k, stride, padding)
    if min(shape[2:]) < 1:
        raise ShapeError(f"an input of {tuple(x.shape)} is smaller than the kernel {k} x {k}")
    check_shape("bias", bias, (weight.shape[0],))
    check_shape("residual", residual, shape)
    run = _run if is_eager(x, bias, residual) else _depthwise
    return run(weight.detach(), x, stride, padding, bias, residual, code)


def depthwise_reference(
    weight: Tensor, x: Tensor, stride: int, padding: int, bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    """`depthwise_conv2d` in plain torch."""
    y = F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])
    return finish_reference(y, bias, residual, code, 1)


def _out_shape(x: Tensor, k: int, stride: int, padding: int) -> tuple[int, int, int, int]:
    height, width = ((length + 2 * padding - k) // stride + 1 for length in x.shape[2:])
    return x.shape[0], x.shape[1], height, width


def _run(
    weight: Tensor, x: Tensor, stride: int, padding: int, bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    extension = native.extension() if runs_native(weight, x, bias, residual) else None
    if extension is None:
        return depthwise_reference(weight, x, stride, padding, bias, residual, code)
    weight, x = weight.contiguous(), x.contiguous()
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = torch.empty(_out_shape(x, weight.shape[-1], stride, padding))
    shape = (*x.shape, weight.shape[-1], stride, padding)
    after = (address(bias), address(residual), code, native.threads())
    extension.depthwise(weight.data_ptr(), shape, x.data_ptr(), y.data_ptr(), *after)
    return y


@torch.library.custom_op("gossamer::depthwise_conv2d", mutates_args=())
def _depthwise(
    weight: Tensor,
    x: Tensor,
    stride: int,
    padding: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return _run(weight, x, stride, padding, bias, residual, activation)


@_depthwise.register_fake
def _(
    weight: Tensor,
    x: Tensor,
    stride: int,
    padding: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    return x.new_empty(_out_shape(x, weight.shape[-1], stride, padding))
