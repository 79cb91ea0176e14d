"""Pooling, addition and activation over (images, channels, height, width), as the engine's plans run them.

>>> x = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
>>> global_average_pool(x).tolist(), max_pool2d(x, 2).tolist()
([[1.5]], [[[[4.0]]]])
>>> add(x, -2 * x, activation="relu").flatten().tolist()
[0.0, 2.0, 0.0, 0.0]
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


def add(a: Tensor, b: Tensor | None = None, *, activation: str = "none") -> Tensor:
    """activation(a + b), for float32 tensors of one shape; without b the activation alone.

    Raises:
        ConfigError: another dtype, or an unknown activation.
        ShapeError: the shapes differ.
    """
    code = activation_code(activation)
    check_floats(a=a, b=b)
    check_shape("b", b, tuple(a.shape))
    return (_run_add if is_eager(a, b) else _add)(a, b, code)


def global_average_pool(x: Tensor) -> Tensor:
    """(images, channels, height, width) -> (images, channels): the mean of each plane, which must not be empty."""
    check_floats(x=x)
    if x.dim() != 4 or x.shape[2] * x.shape[3] == 0:
        raise ShapeError(f"pooling needs (images, channels, height, width) with pixels, got {tuple(x.shape)}")
    return (_run_mean if is_eager(x) else _mean)(x)


def max_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The largest of each kernel x kernel window; NaN wins. Stride is the kernel unless given; no ceil_mode.

    Raises:
        ConfigError: a size below 1, or padding over half of the kernel.
        ShapeError: x is not (images, channels, height, width), or is smaller than the kernel.
    """
    stride = kernel if stride is None else stride
    check_floats(x=x)
    if kernel < 1 or stride < 1 or not 0 <= padding <= kernel // 2:
        raise ConfigError(f"no pooling with kernel {kernel}, stride {stride}, padding {padding}")
    if x.dim() != 4 or min(_pooled(x, kernel, stride, padding)[2:]) < 1:
        raise ShapeError(f"a {kernel} x {kernel} window needs (images, channels, h, w), got {tuple(x.shape)}")
    return (_run_max if is_eager(x) else _max_pool)(x, kernel, stride, padding)


def _pooled(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[int, int, int, int]:
    height, width = ((length + 2 * padding - kernel) // stride + 1 for length in x.shape[2:])
    return x.shape[0], x.shape[1], height, width


def _run_add(a: Tensor, b: Tensor | None, code: int) -> Tensor:
    extension = native.extension() if runs_native(a, b) else None
    if extension is None:
        return finish_reference(a, None, b, code, 0).clone()
    a, b = a.contiguous(), None if b is None else b.contiguous()
    y = torch.empty(a.shape)
    extension.add(a.data_ptr(), address(b), y.data_ptr(), code, y.numel(), native.threads())
    return y


def _run_mean(x: Tensor) -> Tensor:
    extension = native.extension() if runs_native(x) else None
    if extension is None:
        return x.mean((2, 3))
    x, y = x.contiguous(), torch.empty(x.shape[:2])
    extension.mean(y.numel(), x.shape[2] * x.shape[3], x.data_ptr(), y.data_ptr(), native.threads())
    return y


def _run_max(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    extension = native.extension() if runs_native(x) else None
    if extension is None:
        return F.max_pool2d(x, kernel, stride, padding)
    x, y = x.contiguous(), torch.empty(_pooled(x, kernel, stride, padding))
    shape = (x.shape[0] * x.shape[1], x.shape[2], x.shape[3], kernel, stride, padding)
    extension.max_pool(shape, x.data_ptr(), y.data_ptr(), native.threads())
    return y


@torch.library.custom_op("gossamer::add_activation", mutates_args=())
def _add(a: Tensor, b: Tensor | None, activation: int) -> Tensor:
    return _run_add(a, b, activation)


@_add.register_fake
def _(a: Tensor, b: Tensor | None, activation: int) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.custom_op("gossamer::global_average_pool", mutates_args=())
def _mean(x: Tensor) -> Tensor:
    return _run_mean(x)


@_mean.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2])


@torch.library.custom_op("gossamer::max_pool2d", mutates_args=())
def _max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return _run_max(x, kernel, stride, padding)


@_max_pool.register_fake
def _(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return x.new_empty(_pooled(x, kernel, stride, padding))
