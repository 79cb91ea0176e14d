"""A linear layer in training that touches only non-zeros: forward, input gradient, weight gradient.

The native kernels want the samples of a feature side by side in memory. A result comes that way where `row_major` is
False: a (samples, outputs) view with strides (1, n), which the next sparse layer reads without a copy and every torch
operator understands.

    >>> pattern = pack_pattern(torch.tensor([[True, False], [True, True]]))
    >>> values = gather(pattern, torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    >>> sparse_linear(torch.tensor([[1.0, 10.0]]), values, None, pattern)
    tensor([[ 1., 32.]])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.train_pattern import Geometry, Pattern, gather, pack_pattern, positions, scatter_, transfer

__all__ = ["Pattern", "gather", "pack_pattern", "positions", "scatter_", "sparse_linear", "transfer"]

_SAMPLES = 16  # kSamples in train_kernels.hpp


def sparse_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, *, relu: bool = False, row_major: bool = True
) -> Tensor:
    """x W^T + bias for the W that has `values` at `pattern` and 0 elsewhere; differentiable in x, values and bias.

    Zeros of W are no operands: a NaN in x reaches only the outputs that have a weight on it.

    Args:
        x: (..., inputs) float32 on the CPU, any strides.
        values: (nonzeros,) float32, in the pattern's order.
        bias: (outputs,) float32, or None.
        relu: apply max(., 0) as well.
        row_major: a contiguous result; else the samples of each output lie side by side.
    Returns:
        (..., outputs) float32. The same bits for any number of threads.
    Raises:
        ShapeError, ConfigError: a shape, dtype or device that does not fit.
    Source: forward over row panels, both gradients in one pass over the columns, as in Gale et al. 2020 (Sputnik) for
        GPUs; the layout is our own.
    """
    _check(x, values, bias, pattern)
    flat = x if x.dim() == 2 else x.reshape(-1, pattern.inputs)
    shape = [pattern.outputs, pattern.inputs, pattern.nonzeros, *pattern.geometry]
    if torch.compiler.is_compiling():
        y = _linear_op(flat, values, bias, pattern.words, shape, relu, row_major)
    else:
        y = _Linear.apply(flat, values, bias, pattern.words, shape, relu, row_major)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], pattern.outputs)


def _check(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> None:
    if x.dim() == 0 or x.shape[-1] != pattern.inputs:
        raise ShapeError(f"the layer has {pattern.inputs} inputs, but x has shape {tuple(x.shape)}")
    if values.shape != (pattern.nonzeros,):
        raise ShapeError(f"the pattern has {pattern.nonzeros} values, but got shape {tuple(values.shape)}")
    if bias is not None and bias.shape != (pattern.outputs,):
        raise ShapeError(f"the layer has {pattern.outputs} outputs, but the bias has shape {tuple(bias.shape)}")
    for name, tensor in (("x", x), ("values", values), ("bias", bias)):
        if tensor is not None and (tensor.dtype is not torch.float32 or tensor.device.type != "cpu"):
            raise ConfigError(
                f"sparse_linear needs float32 on the CPU, but {name} is {tensor.dtype} on {tensor.device}"
            )


def _unpack_shape(words: Tensor, shape: list[int]) -> Pattern:
    return Pattern(words, shape[0], shape[1], shape[2], Geometry(*shape[3:]))


def _padded(samples: int) -> int:
    return (samples + _SAMPLES - 1) // _SAMPLES * _SAMPLES


def _row(samples: int) -> int:
    """Length of a row in memory: more for long rows, since with a power of two all would share few cache lines."""
    padded = _padded(samples)
    return padded if padded <= 128 else padded + _SAMPLES


def _samples_last(x: Tensor) -> tuple[Tensor, int]:
    """Memory where sample s of feature f is at [f, s], zero in the padding; x's own where that is how x lies."""
    samples = x.shape[0]
    if x.stride(0) == 1 and samples % _SAMPLES == 0 and x.stride(1) >= samples:
        return x, x.stride(1)
    return _load(x, None, None), _row(samples)


def _load(x: Tensor, gate: Tensor | None, sums: Tensor | None) -> Tensor:
    """A padded copy (features, n) of x (samples, features); see TrainKernels.load."""
    samples, features = x.shape
    target = torch.empty(features, _row(samples))
    native.extension().train_load(
        x.data_ptr(), x.stride(0), x.stride(1), features, samples,
        target.data_ptr(), target.stride(0), _padded(samples),
        0 if gate is None else gate.data_ptr(), 0 if gate is None else gate.stride(0),
        0 if sums is None else sums.data_ptr(), native.threads(),
    )  # fmt: skip
    return target


def _row_major(y: Tensor, samples: int) -> Tensor:
    """(features, n) to a contiguous (samples, features)."""
    features = y.shape[0]
    out = torch.empty(samples, features)
    native.extension().train_load(
        y.data_ptr(), y.stride(0), 1, samples, features, out.data_ptr(), features, features, 0, 0, 0, native.threads()
    )
    return out


def _blank(samples: int, features: int, row_major: bool) -> Tensor:
    """An uninitialised (samples, features) result."""
    if row_major:
        return torch.empty(samples, features)
    return torch.empty(features, _row(samples))[:, :samples].t()


def _forward(
    x: Tensor, values: Tensor, bias: Tensor | None, words: Tensor, shape: list[int], relu: bool, row_major: bool
) -> Tensor:
    outputs, samples = shape[0], x.shape[0]
    extension = native.extension()
    if samples == 0:
        return _blank(0, outputs, row_major)
    if extension is None:
        y = linear_reference(x, values, bias, _unpack_shape(words, shape), relu)
        return y if row_major else _blank(samples, outputs, False).copy_(y)
    source, ld = _samples_last(x)
    values = values.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(outputs, _row(samples))
    extension.train_forward(
        words.data_ptr(), words.numel(), values.data_ptr(), 0 if bias is None else bias.data_ptr(),
        source.data_ptr(), ld, y.data_ptr(), y.stride(0), relu, _padded(samples), native.threads(),
    )  # fmt: skip
    return _row_major(y, samples) if row_major else y[:, :samples].t()


def _backward(
    dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, words: Tensor, shape: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, values and bias; an empty one where it is not wanted. `y`: the output where it passed a ReLU.

    The gradient of x lies in memory as x does.
    """
    outputs, inputs, nonzeros = shape[:3]
    samples, row_major = x.shape[0], x.stride(0) != 1
    extension = native.extension()
    if samples == 0 or extension is None:
        grads = backward_reference(dy, x, y, values, _unpack_shape(words, shape), wanted)
        dx = _blank(samples, inputs, row_major).copy_(grads[0]) if wanted[0] else grads[0]
        return dx, grads[1], grads[2]
    sums = torch.empty(outputs if wanted[2] else 0)
    gate = None if y is None else _samples_last(y)[0]
    if y is None and not wanted[2]:
        gradient, lddy = _samples_last(dy)
    else:
        gradient, lddy = _load(dy, None if gate is None else _rows(gate), sums if wanted[2] else None), _row(samples)
    source, ldx = _samples_last(x) if wanted[1] else (x, 0)
    values = values.contiguous()
    dx = torch.empty(inputs, _row(samples)) if wanted[0] else torch.empty(0)
    dvalues = torch.empty(nonzeros if wanted[1] else 0)
    extension.train_backward(
        words.data_ptr(), words.numel(), values.data_ptr(), source.data_ptr(), ldx, gradient.data_ptr(), lddy,
        dx.data_ptr() if wanted[0] else 0, _row(samples), dvalues.data_ptr() if wanted[1] else 0,
        _padded(samples), native.threads(),
    )  # fmt: skip
    if wanted[0]:
        dx = _row_major(dx, samples) if row_major else dx[:, :samples].t()
    return dx, dvalues, sums


def _rows(gate: Tensor) -> Tensor:
    """A gate as (features, n): `_samples_last` gives its own copies that way, but x itself as (samples, features)."""
    return gate.t() if gate.stride(0) == 1 else gate


def linear_reference(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, relu: bool = False) -> Tensor:
    """`sparse_linear` of a matrix x in plain torch, through a dense weight; differentiable."""
    weight = values.new_zeros(pattern.outputs, pattern.inputs).index_put(positions(pattern), values)
    y = F.linear(x, weight, bias)
    return y.relu() if relu else y


def backward_reference(
    dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, pattern: Pattern, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear_reference`, written out."""
    o, i = positions(pattern)
    dy = dy if y is None else torch.where(y <= 0, 0.0, dy)
    weight = values.new_zeros(pattern.outputs, pattern.inputs).index_put((o, i), values)
    none = dy.new_empty(0)
    return (
        dy @ weight if wanted[0] else none,
        (dy.t() @ x)[o, i] if wanted[1] else none,
        dy.sum(0) if wanted[2] else none,
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, words, shape, relu, _ = inputs
    ctx.save_for_backward(x, output if relu else None, values, words)
    ctx.shape, ctx.has_bias = shape, bias is not None


def _gradients(ctx: Any, dy: Tensor, backward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> tuple[Any, ...]:
    x, y, values, words = ctx.saved_tensors
    wanted = [bool(flag) for flag in ctx.needs_input_grad[:2]] + [ctx.has_bias and bool(ctx.needs_input_grad[2])]
    if not any(wanted):
        return (None,) * 7
    grads = backward(dy, x, y, values, words, ctx.shape, wanted)
    return (*(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None, None, None)


class _Linear(torch.autograd.Function):
    """The operator without the dispatcher, whose cost matters beside a layer of a tenth of a millisecond.

    A forward that takes `ctx` spares what torch does with signatures for a separate `setup_context` in every call.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        y = _forward(*args)
        _setup(ctx, args, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return _gradients(ctx, dy, _backward)


@torch.library.custom_op("gossamer::trained_linear", mutates_args=())
def _linear_op(
    x: Tensor, values: Tensor, bias: Tensor | None, words: Tensor, shape: list[int], relu: bool, row_major: bool
) -> Tensor:
    return _forward(x, values, bias, words, shape, relu, row_major)


@_linear_op.register_fake
def _(
    x: Tensor, values: Tensor, bias: Tensor | None, words: Tensor, shape: list[int], relu: bool, row_major: bool
) -> Tensor:
    return _fake(x, shape[0], row_major)


def _fake(x: Tensor, features: int, row_major: bool) -> Tensor:
    samples = x.shape[0]
    return x.new_empty(samples, features) if row_major else x.new_empty(features, _row(samples))[:, :samples].t()


@torch.library.custom_op("gossamer::trained_linear_backward", mutates_args=())
def _backward_op(
    dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, words: Tensor, shape: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(dy, x, y, values, words, shape, wanted)


@_backward_op.register_fake
def _(
    dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, words: Tensor, shape: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dx = _fake(x, shape[1], x.stride(0) != 1) if wanted[0] else x.new_empty(0)
    return dx, x.new_empty(shape[2] if wanted[1] else 0), x.new_empty(shape[0] if wanted[2] else 0)


_linear_op.register_autograd(lambda ctx, dy: _gradients(ctx, dy, _backward_op), setup_context=_setup)
