"""ONNX: export, check in ONNX Runtime, and the ratio that zeros alone gain there. Needs the extra `export`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.engine import tune
from gossamer.engine.capture import Importer, exported
from gossamer.engine.checks import answer, check_example, check_model, quiet_torch
from gossamer.engine.fuse import fuse
from gossamer.engine.graph import Graph, Node
from gossamer.errors import ConfigError, GossamerError, MissingExtra
from gossamer.kernels import native
from gossamer.runs.files import atomic

OPSET, IR_VERSION = 20, 10
ACTIVATIONS = {
    "none": "Identity", "relu": "Relu", "hardswish": "HardSwish", "gelu": "Gelu", "sigmoid": "Sigmoid",
    "hardsigmoid": "HardSigmoid",
}  # fmt: skip
ATTRIBUTES = {"hardsigmoid": {"alpha": 1 / 6, "beta": 0.5}}


@dataclass(frozen=True)
class ExportReport:
    """An exported file, as measured side by side in one process.

    Attributes:
        path: of the file. megabytes: its size.
        difference: largest difference from torch, relative to the largest output.
        milliseconds: "torch eager", "onnxruntime", and "onnxruntime dense": the same network without zeros.
    """

    path: str
    megabytes: float
    difference: float
    milliseconds: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in self.milliseconds.items())
        gain = self.milliseconds["onnxruntime dense"] / self.milliseconds["onnxruntime"]
        return (
            f"{self.path}: {self.megabytes:.1f} MB, outputs differ by {self.difference:.1e}; {times}. "
            f"In ONNX Runtime the zeros make it {gain:.2f} times as fast: zeros alone gain nothing there. "
            "gossamer.compile runs them sparse, gossamer.shrink removes whole channels."
        )


@torch.no_grad()
def export(model: nn.Module, example: Tensor, path: str | Path) -> ExportReport:
    """Write an ONNX file (zeros stay stored, any batch size), and compare it with torch in ONNX Runtime.

    Args:
        model: in evaluation mode, with one output tensor.
        example: float32 (batch, ...).
    Raises:
        ConfigError: the model is in training mode, not float32 on the CPU, or does not accept the example.
        MissingExtra: onnx or onnxruntime is not installed.
        GossamerError: ONNX Runtime computes something else than torch; nothing is written then.
    """
    require("onnxruntime")
    path = Path(path)
    check_model(model)
    check_example(example)
    wanted = answer(model, example)
    if not isinstance(wanted, Tensor):
        raise ConfigError(f"export writes networks with one output tensor, this one returns a {type(wanted).__name__}")
    wanted = wanted.numpy()
    data = to_bytes(model, example)
    run, dense = session(data), session(to_bytes(_without_zeros(model), example))
    found = run(example)
    difference = float(np.abs(wanted - found).max() / max(1e-12, float(np.abs(wanted).max())))
    if found.shape != wanted.shape or difference > 1e-4:
        raise GossamerError(
            f"ONNX Runtime's output {found.shape} differs from torch's {wanted.shape} by {difference:.3g}"
        )
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    runners: dict[str, Callable[[Tensor], Any]] = {"torch eager": model, "onnxruntime": run, "onnxruntime dense": dense}
    calls: dict[str, Callable[[], object]] = {name: partial(f, example) for name, f in runners.items()}
    times = tune.race(calls, native.threads())
    return ExportReport(str(path), len(data) / 2**20, difference, times)


def _without_zeros(model: nn.Module) -> nn.Module:
    """The same shapes with small weights in place of zeros, for time only."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter[parameter == 0] = 1e-3
    return model


def session(data: bytes, threads: int | None = None) -> Callable[[Tensor], np.ndarray]:
    """An ONNX file in ONNX Runtime on the CPU, as a function."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or native.threads(), 1
    options.log_severity_level = 3
    made = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda x: made.run(None, {name: x.numpy()})[0]


def require(package: str) -> Any:
    """Raises MissingExtra unless the package is installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtra(package, "export") from error


def to_bytes(model: nn.Module, example: Tensor) -> bytes:
    """The network in ONNX: ours with folded normalisation where the engine knows all operators, else torch's."""
    require("onnx")
    program, batch = exported(model, example)
    graph = Importer(program, batch).run()
    fuse(graph)
    if graph.batch is None and all(node.op != "torch" for node in graph.nodes):
        return graph_to_bytes(graph)
    require("onnxscript")
    with warnings.catch_warnings(), quiet_torch():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    return made.model_proto.SerializeToString()


def graph_to_bytes(graph: Graph) -> bytes:
    """A fused graph without torch nodes as an ONNX model."""
    return _Writer(graph).run()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        onnx = require("onnx")
        self.onnx, self.helper, self.graph = onnx, onnx.helper, graph
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def run(self) -> bytes:
        graph, kind = self.graph, self.onnx.TensorProto.FLOAT
        for node in graph.nodes:
            self._add(node)
        self._emit("Reshape", [f"v{graph.result}", self._shape(graph.output_shape or ())], "output")
        source = self.helper.make_tensor_value_info(
            f"v{graph.source}", kind, ["batch", *(graph.shapes[graph.source] or ())]
        )
        result = self.helper.make_tensor_value_info("output", kind, ["batch", *(graph.output_shape or ())])
        made = self.helper.make_graph(self.nodes, "gossamer", [source], [result], self.weights)
        opsets = [self.helper.make_opsetid("", OPSET)]
        model = self.helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gossamer")
        self.onnx.checker.check_model(model)
        return model.SerializeToString()

    def _emit(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(op, inputs, [output], **attributes))
        return output

    def _constant(self, tensor: Tensor) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(self.onnx.numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def _shape(self, shape: tuple[int, ...]) -> str:
        return self._constant(torch.tensor([-1, *shape]))

    def _as(self, value: int, shape: tuple[int, ...], name: str) -> str:
        """The value in this shape of one image."""
        if self.graph.shapes[value] == shape:
            return f"v{value}"
        return self._emit("Reshape", [f"v{value}", self._shape(shape)], name)

    def _add(self, node: Node) -> None:
        shape, out = self.graph.shapes[node.output] or (), f"v{node.output}"
        inputs = [self._as(v, self._operand(node, v, shape), f"{out}_{i}") for i, v in enumerate(node.inputs)]
        made = self._product(node, inputs, f"{out}_made")
        if self.graph.shapes[node.output] != self._made_shape(node, shape):
            made = self._emit("Reshape", [made, self._shape(shape)], f"{out}_shaped")
        if node.residual is not None:
            made = self._emit("Add", [made, self._as(node.residual, shape, f"{out}_residual")], f"{out}_sum")
        self._activate(node.activation, made, out)

    def _operand(self, node: Node, value: int, out: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that an operator wants of an input."""
        if node.op in ("conv", "depthwise", "max_pool"):
            return tuple(node.shape[:3])
        if node.op == "mean":
            return (node.shape[0], node.shape[1], 1)
        if node.op == "linear":
            assert node.weight is not None
            return (*((node.shape[0],) if node.shape[0] > 1 else ()), node.weight.shape[1])
        if node.op == "scale":
            return (node.shape[0], *(node.shape[1:] if value == node.inputs[0] else (1,)))
        if node.op == "cat":
            return (self.graph.size(value),)
        return out

    def _made_shape(self, node: Node, out: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that an operator gives; None where it has to be reshaped."""
        return out if node.op in ("conv", "depthwise", "max_pool", "add", "act") else None

    def _product(self, node: Node, inputs: list[str], out: str) -> str:
        s = node.shape
        if node.op in ("conv", "depthwise"):
            is_deep = node.op == "depthwise"
            stride, padding = ([s[4]] * 2, [s[5]] * 4) if is_deep else (list(s[5:7]), [s[7], s[8], s[7], s[8]])
            dilation, groups = ([1, 1], s[0]) if is_deep else (list(s[9:11]), 1)
            weight = node.weight[:, None] if is_deep and node.weight is not None else node.weight
            assert weight is not None
            operands = [*inputs, self._constant(weight), *([] if node.bias is None else [self._constant(node.bias)])]
            return self._emit("Conv", operands, out, strides=stride, pads=padding, dilations=dilation, group=groups)
        if node.op == "linear":
            assert node.weight is not None
            made = self._emit("MatMul", [*inputs, self._constant(node.weight.t())], f"{out}_product")
            return made if node.bias is None else self._emit("Add", [made, self._constant(node.bias)], out)
        if node.op == "max_pool":
            return self._emit("MaxPool", inputs, out, kernel_shape=[s[3]] * 2, strides=[s[4]] * 2, pads=[s[5]] * 4)
        if node.op == "mean":
            return self._emit("GlobalAveragePool", inputs, out)
        if node.op == "cat":
            return self._emit("Concat", inputs, out, axis=1)
        if node.op == "scale":
            return self._emit("Mul", inputs, out)
        return inputs[0] if len(inputs) == 1 else self._emit("Add", inputs, out)

    def _activate(self, activation: str, made: str, out: str) -> None:
        if activation == "silu":
            self._emit("Mul", [made, self._emit("Sigmoid", [made], f"{out}_gate")], out)
        elif activation == "relu6":
            bounds = [self._constant(torch.tensor(0.0)), self._constant(torch.tensor(6.0))]
            self._emit("Clip", [made, *bounds], out)
        else:
            self._emit(ACTIVATIONS[activation], [made], out, **ATTRIBUTES.get(activation, {}))
