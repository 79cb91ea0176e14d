"""What follows a product in the same kernel: bias, residual and activation; and the checks that all kernels share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError, unknown
from gossamer.kernels import native

# The order is that of `enum class Activation` in csrc/sparse/activation.hpp.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def activation_code(name: str) -> int:
    """The number of an activation in the native kernels.

    Raises:
        ConfigError: no kernel fuses this activation.
    """
    if name not in _CODES:
        raise unknown("activation", name, _CODES)
    return _CODES[name]


def finish_reference(y: Tensor, bias: Tensor | None, residual: Tensor | None, code: int, axis: int) -> Tensor:
    """activation(y + bias + residual) in plain torch; `axis` of y is the output channel."""
    if bias is not None:
        shape = [1] * y.dim()
        shape[axis] = -1
        y = y + bias.reshape(shape)
    if residual is not None:
        y = y + residual
    return list(ACTIVATIONS.values())[code](y)


def check_floats(**tensors: Tensor | None) -> None:
    """Every given tensor is fp32, and none of them needs a gradient: the kernels only infer.

    Raises:
        ConfigError: another dtype, or a gradient is wanted.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype is not torch.float32:
            raise ConfigError(f"sparse kernels compute in float32, but {name} is {tensor.dtype}; use {name}.float()")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ConfigError(f"sparse kernels have no gradient, but {name} requires one; run under torch.no_grad()")


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ShapeError unless the tensor is absent or has exactly this shape."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ShapeError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def check_layer(rows: int, columns: int, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """Operands of a fully connected layer: x (..., columns), bias (rows,), residual (..., rows).

    Raises:
        ConfigError, ShapeError: one does not fit.
    """
    check_floats(x=x, bias=bias, residual=residual)
    if x.dim() == 0 or x.shape[-1] != columns:
        raise ShapeError(f"a weight of {columns} columns needs (..., {columns}), got {tuple(x.shape)}")
    check_shape("bias", bias, (rows,))
    check_shape("residual", residual, (*x.shape[:-1], rows))


def run_layer(
    kernel: Callable[..., None], rows: int, x: Tensor, bias: Tensor | None, residual: Tensor | None, code: int
) -> Tensor:
    """Call kernel(batch, x, y, bias, residual, activation, threads) with addresses; returns y (..., rows)."""
    x, y = x.contiguous(), torch.empty(*x.shape[:-1], rows)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    batch, after = math.prod(x.shape[:-1]), (address(bias), address(residual), code, native.threads())
    kernel(batch, x.data_ptr(), y.data_ptr(), *after)
    return y


def run_native(
    kernel: Callable[[Any], Callable[..., None]],
    reference: Callable[[], Tensor],
    rows: int,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    code: int,
) -> Tensor:
    """`run_layer` of kernel(extension), or reference() where the compiled kernels are absent or x is elsewhere."""
    extension = native.extension() if runs_native(x, bias, residual) else None
    if extension is None:
        return reference()
    return run_layer(kernel(extension), rows, x, bias, residual, code)


def runs_native(*tensors: Tensor | None) -> bool:
    """All are ordinary tensors in the memory of the CPU."""
    return all(t is None or t.device.type == "cpu" for t in tensors)


def is_eager(*tensors: Tensor | None) -> bool:
    """Nothing traces, so that the kernel may be called without the overhead of a registered operator."""
    return not torch.compiler.is_compiling() and all(t is None or type(t) is Tensor for t in tensors)


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
