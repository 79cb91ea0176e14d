"""From a model in evaluation mode to a `Graph`: torch.export, then one small function for each operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gossamer.engine.graph import Graph, Node
from gossamer.errors import ConfigError, GossamerError

MOST_EXPANDED = 1 << 24  # weights of a grouped convolution written out as an ordinary one


class UnsupportedError(Exception):
    """Why a node runs through torch."""


def capture(model: nn.Module, example: Tensor) -> Graph:
    """The network as nodes that the engine knows, and others that torch runs.

    Raises:
        ConfigError: more than one input or output tensor.
        GossamerError: torch cannot trace the model, as with control flow that depends on data.
    """
    program, batch = _exported(model, example)
    return _Importer(program, batch).run()


def _exported(model: nn.Module, example: Tensor) -> tuple[ExportedProgram, int | None]:
    """Any batch size where the model allows it; a second image keeps torch from taking the size 1 for a constant."""
    two = torch.cat([example, example])[:2] if len(example) else example
    problems = []
    for inputs, shapes, batch in ((two, ({0: Dim.AUTO},), None), (example, None, len(example))):
        for source in (model, None):
            try:
                traced = source or torch.fx.symbolic_trace(model)
                program = torch.export.export(traced, (inputs,), dynamic_shapes=shapes)
            except Exception as error:  # whatever the model's code raises while it is traced
                problems.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
                continue
            if batch is None and str(_input(program).meta["val"].shape[0]).isdigit():
                break  # torch found the size to be fixed
            return program, batch
    raise GossamerError(f"torch cannot trace this {type(model).__name__} ({problems[0]})")


def _input(program: ExportedProgram) -> Any:
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1 or len(program.graph_signature.user_outputs) != 1:
        raise ConfigError(
            f"a plan has one input and one output tensor, this model has {len(inputs)} and "
            f"{len(program.graph_signature.user_outputs)}; use mode='modules'"
        )
    return next(node for node in program.graph.nodes if node.name == inputs[0])


class _Importer:
    """Walks the traced nodes once."""

    def __init__(self, program: ExportedProgram, batch: int | None) -> None:
        self.program = program
        self.graph = Graph(batch=batch)
        self.dim = _input(program).meta["val"].shape[0]

    def run(self) -> Graph:
        graph, traced = self.graph, self.program.graph
        stored = _stored(self.program)
        for node in traced.nodes:
            if node.op == "placeholder" and node.name in stored:
                graph.constants[node.name] = stored[node.name]
            elif node.op == "placeholder":
                graph.source = self._define(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                (result,) = node.args[0]
                graph.result, graph.output_shape = graph.names[result.name], graph.views.get(result.name)
            else:
                raise GossamerError(f"torch traced a {node.op} ({node.name}), which the engine does not read")
        return graph

    def _call(self, node: Any) -> None:
        handler = OPERATORS.get(str(node.target))
        try:
            if handler is None:
                raise UnsupportedError(f"no kernel for {node.target}")
            handler(self, node)
        except UnsupportedError as why:
            self._torch(node, str(why))

    # ---- what handlers use

    def shape(self, node: Any) -> tuple[int, ...]:
        """Shape of one image."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype is not torch.float32:
            raise UnsupportedError("not a float32 tensor")
        if value.dim() < 2 or str(value.shape[0]) != str(self.dim) or any(type(n) is not int for n in value.shape[1:]):
            raise UnsupportedError("its first dimension is not the batch, or others are not fixed")
        return tuple(value.shape[1:])

    def value(self, node: Any) -> int:
        """The value behind a traced node that has a batch."""
        if node.name not in self.graph.names or self.graph.names[node.name] < 0:
            raise UnsupportedError("an operand is a constant")
        self.shape(node)
        return self.graph.names[node.name]

    def optional(self, node: Any) -> Tensor | None:
        """A weight that may be absent."""
        return None if node is None else self.constant(node)

    def constant(self, node: Any) -> Tensor:
        """A weight."""
        if node.name not in self.graph.constants:
            raise UnsupportedError("a weight is computed, not stored")
        found = self.graph.constants[node.name].detach()
        if found.dtype is not torch.float32 or not bool(torch.isfinite(found).all()):
            raise UnsupportedError("a weight is not float32, or not finite")
        return found

    def add(self, node: Any, op: str, inputs: list[int], **fields: Any) -> None:
        """A native node whose output is `node`."""
        name = _layer(node)
        self.graph.nodes.append(Node(op, name, inputs, self._define(node), **fields))

    def alias(self, node: Any, of: Any) -> None:
        """`node` has the same numbers in the same order as `of`."""
        self.shape(node)
        self.graph.names[node.name] = self.value(of)
        self.graph.views[node.name] = self.shape(node)

    def hidden(self, op: str, name: str, inputs: list[int], shape: tuple[int, ...], **fields: Any) -> int:
        """A native node that has no traced one."""
        output = self.graph.value(shape)
        self.graph.nodes.append(Node(op, name, inputs, output, **fields))
        return output

    def _define(self, node: Any) -> int:
        shape = self.shape(node)
        self.graph.names[node.name] = self.graph.value(shape)
        self.graph.views[node.name] = shape
        return self.graph.names[node.name]

    def _torch(self, node: Any, reason: str) -> None:
        inputs = sorted({self.graph.names[n.name] for n in node.all_input_nodes if n.name in self.graph.names})
        try:
            shape: tuple[int, ...] | None = self.shape(node)
        except UnsupportedError:
            shape = None
        output = self.graph.value(shape)
        self.graph.names[node.name] = output
        if shape is not None:
            self.graph.views[node.name] = shape
        self.graph.nodes.append(Node("torch", _layer(node), inputs, output, call=node, reason=reason))


def _stored(program: ExportedProgram) -> dict[str, Tensor]:
    """Placeholder -> parameter, buffer or lifted constant."""
    signature = program.graph_signature
    named = {**dict(program.named_parameters()), **dict(program.named_buffers()), **program.constants}
    inputs = (signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants)
    return {key: named[target].detach() for table in inputs for key, target in table.items()}


def _layer(node: Any) -> str:
    """The innermost module's path, with the operation where a module does several things."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    kind = str(node.target).removeprefix("aten.").split(".")[0]
    is_leaf = stack and kind.replace("_", "") in str(stack[-1][1]).lower()
    return path if is_leaf else f"{path}.{kind}" if path else kind


# ---- operators: each adds nodes, or raises UnsupportedError


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


def _conv(at: _Importer, node: Any) -> None:
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


def _batch_norm(at: _Importer, node: Any) -> None:
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


def _linear(at: _Importer, node: Any) -> None:
    x, w, b = _arguments(node, None, None, None)
    weight, shape = at.constant(w), at.shape(x)
    rows = 1
    for n in shape[:-1]:
        rows *= n
    at.add(node, "linear", [at.value(x)], shape=(rows,), weight=weight, bias=at.optional(b))


def _activation(name: str) -> Callable[[_Importer, Any], None]:
    def handle(at: _Importer, node: Any) -> None:
        if name == "gelu" and node.kwargs.get("approximate", "none") != "none":
            raise UnsupportedError("GELU by tanh")
        at.add(node, "act", [at.value(node.args[0])], activation=name)

    return handle


def _hardtanh(at: _Importer, node: Any) -> None:
    x, low, high = _arguments(node, None, -1, 1)
    if (low, high) != (0, 6):
        raise UnsupportedError(f"hardtanh from {low} to {high}")
    at.add(node, "act", [at.value(x)], activation="relu6")


def _add(at: _Importer, node: Any) -> None:
    a, b = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1 or not hasattr(b, "meta") or at.shape(a) != at.shape(b):
        raise UnsupportedError("an addition that is scaled, or of other shapes")
    at.add(node, "add", [at.value(a), at.value(b)])


def _mul(at: _Importer, node: Any) -> None:
    a, b = node.args[:2]
    if not hasattr(b, "meta") or not hasattr(a, "meta"):
        raise UnsupportedError("a product with a number")
    if len(at.shape(a)) == 3 and at.shape(a)[1:] == (1, 1):
        a, b = b, a
    (channels, height, width), factor = (*at.shape(a), 0, 0)[:3], at.shape(b)
    if factor != (channels, 1, 1) or len(at.shape(a)) != 3:
        raise UnsupportedError("a product other than of channels with factors")
    at.add(node, "scale", [at.value(a), at.value(b)], shape=(channels, height * width))


def _mean(at: _Importer, node: Any) -> None:
    x, dims = node.args[:2]
    shape = at.shape(x)
    if len(shape) != 3 or sorted(d % 4 for d in dims) != [2, 3]:
        raise UnsupportedError("a mean over other dimensions than height and width")
    at.add(node, "mean", [at.value(x)], shape=(shape[0], shape[1] * shape[2]))


def _adaptive_pool(at: _Importer, node: Any) -> None:
    x, size = node.args[:2]
    shape = at.shape(x)
    if _pair(size) != [1, 1] or len(shape) != 3:
        raise UnsupportedError(f"adaptive pooling to {size}")
    at.add(node, "mean", [at.value(x)], shape=(shape[0], shape[1] * shape[2]))


def _average_pool(at: _Importer, node: Any) -> None:
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


def _max_pool(at: _Importer, node: Any) -> None:
    x, kernel, stride, padding, dilation, ceil = _arguments(node, None, None, [], 0, 1, False)
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    if ceil or _pair(dilation) != [1, 1] or any(len({*p}) > 1 for p in (kernel, stride, padding)):
        raise UnsupportedError("max pooling with these options")
    at.add(node, "max_pool", [at.value(x)], shape=(*at.shape(x), kernel[0], stride[0], padding[0]))


def _reshape(at: _Importer, node: Any) -> None:
    at.alias(node, node.args[0])  # `shape` has checked that the batch stays in front


def _dropout(at: _Importer, node: Any) -> None:
    if len(node.args) > 2 and node.args[2]:
        raise UnsupportedError("dropout that is on")
    at.alias(node, node.args[0])


def _slice(at: _Importer, node: Any) -> None:
    x, dim, start, end, step = _arguments(node, None, 0, None, None, 1)
    if str(x.meta["val"].shape) == str(node.meta["val"].shape):
        at.alias(node, x)
        return
    shape = at.shape(x)
    if len(shape) != 3 or dim < 2 or start not in (0, None) or (end is not None and end < shape[dim - 1]):
        raise UnsupportedError("a slice other than of every n-th row or column")
    stride = [step if dim == d else 1 for d in (2, 3)]
    _select(at, node, x, torch.eye(shape[0]), stride)


def _pad(at: _Importer, node: Any) -> None:
    x, sizes, mode, value = _arguments(node, None, None, "constant", None)
    shape = at.shape(x)
    if mode != "constant" or value or len(sizes) != 6 or any(sizes[:4]) or len(shape) != 3 or min(sizes) < 0:
        raise UnsupportedError("padding other than with channels of zeros")
    _select(at, node, x, torch.nn.functional.pad(torch.eye(shape[0]), (0, 0, *sizes[4:])), [1, 1])


def _select(at: _Importer, node: Any, x: Any, weight: Tensor, stride: list[int]) -> None:
    sizes = (*at.shape(x), 1, 1, *stride, 0, 0, 1, 1)
    at.add(node, "conv", [at.value(x)], shape=sizes, weight=weight[:, :, None, None], selects=True)


def _cat(at: _Importer, node: Any) -> None:
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


OPERATORS: dict[str, Callable[[_Importer, Any], None]] = {
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
