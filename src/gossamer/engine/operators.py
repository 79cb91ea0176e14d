"""What each traced operator becomes: one small function for each adds nodes to the graph, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gossamer.engine.capture import Importer

MOST_EXPANDED = 1 << 24  # weights of a grouped convolution written out as an ordinary one


class UnsupportedError(Exception):
    """Why a node runs through torch."""


def _arguments(node: Any, *defaults: Any) -> list[Any]:
    """Positional arguments, filled up with defaults, keywords refused unless they are defaults."""
    given = [*node.args, *defaults[len(node.args) :]]
    schema = [a.name for a in node.target._schema.arguments]
    for key, value in node.kwargs.items():
        if key in schema and schema.index(key) < len(given):
            given[schema.index(key)] = value
    return given


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value, *value] if len(value) == 1 else list(value)


def _conv(at: Importer, node: Any) -> None:
    x, w, b, stride, padding, dilation, groups = _arguments(node, None, None, None, 1, 0, 1, 1)
    weight, bias, source = at.constant(w), at.optional(b), at.value(x)
    shape = at.shape(x)
    if isinstance(padding, str):
        padding = _same_padding(padding, weight.shape[2:], dilation)
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    channels, height, width = shape
    side = weight.shape[-1]
    is_square = weight.shape[2] == side and len({*stride}) == len({*padding}) == 1 and dilation == [1, 1]
    if groups == channels == len(weight) and side in (3, 5) and is_square and stride[0] < 3 and padding[0] < side:
        sizes = (channels, height, width, side, stride[0], padding[0])
        at.add(node, "depthwise", [source], shape=sizes, weight=weight[:, 0], bias=bias)
        return
    sizes = (channels, height, width, *weight.shape[2:], *stride, *padding, *dilation)
    at.add(node, "conv", [source], shape=sizes, weight=_ungrouped(weight, groups), bias=bias)


def _same_padding(padding: str, kernel: Any, dilation: Any) -> list[int]:
    if padding == "valid":
        return [0, 0]
    extents = [d * (k - 1) for k, d in zip(kernel, _pair(dilation), strict=True)]
    if any(e % 2 for e in extents):
        raise UnsupportedError("'same' padding of an even kernel")
    return [e // 2 for e in extents]


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weight of an ordinary convolution, zero between groups."""
    if groups == 1:
        return weight
    out, inputs, *kernel = weight.shape
    if out * inputs * groups * kernel[0] * kernel[1] > MOST_EXPANDED:
        raise UnsupportedError(f"a convolution with {groups} groups of this size")
    full = weight.new_zeros(out, inputs * groups, *kernel)
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        full[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return full


def _batch_norm(at: Importer, node: Any) -> None:
    x, gamma, beta, mean, variance, training, _, epsilon, _ = _arguments(node, *[None] * 5, False, 0.1, 1e-5, True)
    if training or mean is None:
        raise UnsupportedError("batch normalisation by the batch's own statistics")
    mean_, variance_ = at.constant(mean).double(), at.constant(variance).double()
    scale = (variance_ + epsilon).rsqrt()
    if gamma is not None:
        scale = scale * at.constant(gamma).double()
    shift = -mean_ * scale
    if beta is not None:
        shift = shift + at.constant(beta).double()
    at.add(node, "affine", [at.value(x)], weight=scale, bias=shift)


def _linear(at: Importer, node: Any) -> None:
    x, w, b = _arguments(node, None, None, None)
    weight, shape = at.constant(w), at.shape(x)
    rows = 1
    for n in shape[:-1]:
        rows *= n
    at.add(node, "linear", [at.value(x)], shape=(rows,), weight=weight, bias=at.optional(b))


def _activation(name: str) -> Callable[[Importer, Any], None]:
    def handle(at: Importer, node: Any) -> None:
        if name == "gelu" and node.kwargs.get("approximate", "none") != "none":
            raise UnsupportedError("GELU by tanh")
        at.add(node, "act", [at.value(node.args[0])], activation=name)

    return handle


def _hardtanh(at: Importer, node: Any) -> None:
    x, low, high = _arguments(node, None, -1, 1)
    if (low, high) != (0, 6):
        raise UnsupportedError(f"hardtanh from {low} to {high}")
    at.add(node, "act", [at.value(x)], activation="relu6")


def _add(at: Importer, node: Any) -> None:
    a, b = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1 or not hasattr(b, "meta") or at.shape(a) != at.shape(b):
        raise UnsupportedError("an addition that is scaled, or of other shapes")
    at.add(node, "add", [at.value(a), at.value(b)])


def _mul(at: Importer, node: Any) -> None:
    a, b = node.args[:2]
    if not hasattr(b, "meta") or not hasattr(a, "meta"):
        raise UnsupportedError("a product with a number")
    if len(at.shape(a)) == 3 and at.shape(a)[1:] == (1, 1):
        a, b = b, a
    (channels, height, width), factor = (*at.shape(a), 0, 0)[:3], at.shape(b)
    if factor != (channels, 1, 1) or len(at.shape(a)) != 3:
        raise UnsupportedError("a product other than of channels with factors")
    at.add(node, "scale", [at.value(a), at.value(b)], shape=(channels, height * width))


def _mean(at: Importer, node: Any) -> None:
    x, dims = node.args[:2]
    shape = at.shape(x)
    if len(shape) != 3 or sorted(d % 4 for d in dims) != [2, 3]:
        raise UnsupportedError("a mean over other dimensions than height and width")
    at.add(node, "mean", [at.value(x)], shape=(shape[0], shape[1] * shape[2]))


def _adaptive_pool(at: Importer, node: Any) -> None:
    x, size = node.args[:2]
    shape = at.shape(x)
    if _pair(size) != [1, 1] or len(shape) != 3:
        raise UnsupportedError(f"adaptive pooling to {size}")
    at.add(node, "mean", [at.value(x)], shape=(shape[0], shape[1] * shape[2]))


def _average_pool(at: Importer, node: Any) -> None:
    x, kernel, stride, padding, ceil, includes, divisor = _arguments(node, None, None, [], 0, False, True, None)
    (channels, height, width), kernel = at.shape(x), _pair(kernel)
    stride, padding = _pair(stride or kernel), _pair(padding)
    if ceil or divisor is not None or (not includes and padding != [0, 0]):
        raise UnsupportedError("average pooling with these options")
    if channels * channels * kernel[0] * kernel[1] > MOST_EXPANDED:
        raise UnsupportedError("average pooling of this size")
    weight = torch.zeros(channels, channels, *kernel)
    weight[range(channels), range(channels)] = 1 / (kernel[0] * kernel[1])
    sizes = (channels, height, width, *kernel, *stride, *padding, 1, 1)
    at.add(node, "conv", [at.value(x)], shape=sizes, weight=weight, selects=True)


def _max_pool(at: Importer, node: Any) -> None:
    x, kernel, stride, padding, dilation, ceil = _arguments(node, None, None, [], 0, 1, False)
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    if ceil or _pair(dilation) != [1, 1] or any(len({*p}) > 1 for p in (kernel, stride, padding)):
        raise UnsupportedError("max pooling with these options")
    at.add(node, "max_pool", [at.value(x)], shape=(*at.shape(x), kernel[0], stride[0], padding[0]))


def _reshape(at: Importer, node: Any) -> None:
    at.alias(node, node.args[0])  # `shape` has checked that the batch stays in front


def _dropout(at: Importer, node: Any) -> None:
    if len(node.args) > 2 and node.args[2]:
        raise UnsupportedError("dropout that is on")
    at.alias(node, node.args[0])


def _slice(at: Importer, node: Any) -> None:
    x, dim, start, end, step = _arguments(node, None, 0, None, None, 1)
    if str(x.meta["val"].shape) == str(node.meta["val"].shape):
        at.alias(node, x)
        return
    shape = at.shape(x)
    if len(shape) != 3 or dim < 2 or start not in (0, None) or (end is not None and end < shape[dim - 1]):
        raise UnsupportedError("a slice other than of every n-th row or column")
    stride = [step if dim == d else 1 for d in (2, 3)]
    _select(at, node, x, torch.eye(shape[0]), stride)


def _pad(at: Importer, node: Any) -> None:
    x, sizes, mode, value = _arguments(node, None, None, "constant", None)
    shape = at.shape(x)
    if mode != "constant" or value or len(sizes) != 6 or any(sizes[:4]) or len(shape) != 3 or min(sizes) < 0:
        raise UnsupportedError("padding other than with channels of zeros")
    _select(at, node, x, torch.nn.functional.pad(torch.eye(shape[0]), (0, 0, *sizes[4:])), [1, 1])


def _select(at: Importer, node: Any, x: Any, weight: Tensor, stride: list[int]) -> None:
    sizes = (*at.shape(x), 1, 1, *stride, 0, 0, 1, 1)
    at.add(node, "conv", [at.value(x)], shape=sizes, weight=weight[:, :, None, None], selects=True)


def _cat(at: Importer, node: Any) -> None:
    parts, dim = node.args[0], (node.args[1] if len(node.args) > 1 else 0)
    shape = at.shape(node)
    if dim % (len(shape) + 1) != 1:
        raise UnsupportedError("concatenation other than of channels")
    values, start = [at.value(part) for part in parts], 0
    at.add(node, "cat", values)
    places = []
    for value in values:
        places.append(start)
        start += at.graph.size(value)
    at.graph.nodes[-1].shape = tuple(places)


OPERATORS: dict[str, Callable[[Importer, Any], None]] = {
    "aten.conv2d.default": _conv,
    "aten.conv2d.padding": _conv,
    "aten.batch_norm.default": _batch_norm,
    "aten.linear.default": _linear,
    "aten.relu.default": _activation("relu"),
    "aten.relu_.default": _activation("relu"),
    "aten.relu6.default": _activation("relu6"),
    "aten.hardswish.default": _activation("hardswish"),
    "aten.hardswish_.default": _activation("hardswish"),
    "aten.gelu.default": _activation("gelu"),
    "aten.silu.default": _activation("silu"),
    "aten.silu_.default": _activation("silu"),
    "aten.sigmoid.default": _activation("sigmoid"),
    "aten.sigmoid_.default": _activation("sigmoid"),
    "aten.hardsigmoid.default": _activation("hardsigmoid"),
    "aten.hardsigmoid_.default": _activation("hardsigmoid"),
    "aten.hardtanh.default": _hardtanh,
    "aten.hardtanh_.default": _hardtanh,
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    "aten.mul.Tensor": _mul,
    "aten.mean.dim": _mean,
    "aten.adaptive_avg_pool2d.default": _adaptive_pool,
    "aten.avg_pool2d.default": _average_pool,
    "aten.max_pool2d.default": _max_pool,
    "aten.flatten.using_ints": _reshape,
    "aten.reshape.default": _reshape,
    "aten.view.default": _reshape,
    "aten.unflatten.int": _reshape,
    "aten.dropout.default": _dropout,
    "aten.contiguous.default": _reshape,
    "aten.slice.Tensor": _slice,
    "aten.pad.default": _pad,
    "aten.cat.default": _cat,
}
