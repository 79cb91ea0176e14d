"""From a model in evaluation mode to a `Graph`: torch.export, then one small function for each operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gossamer.engine.checks import quiet_torch
from gossamer.engine.graph import Graph, Node
from gossamer.engine.operators import OPERATORS, UnsupportedError
from gossamer.errors import ConfigError, GossamerError

HINTS = {"gossamer.trained_linear.default": "a layer that trains its non-zeros; call sparsifier.finalize() first"}


def capture(model: nn.Module, example: Tensor) -> Graph:
    """The network as nodes that the engine knows, and others that torch runs.

    Raises:
        ConfigError: more than one input or output tensor.
        GossamerError: torch cannot trace the model, as with control flow that depends on data.
    """
    return Importer(*exported(model, example)).run()


def exported(model: nn.Module, example: Tensor) -> tuple[ExportedProgram, int | None]:
    """Any batch size where the model allows it; a second image keeps torch from taking the size 1 for a constant."""
    two = torch.cat([example, example])[:2] if len(example) else example
    problems = []
    for inputs, shapes, batch in ((two, ({0: Dim.AUTO},), None), (example, None, len(example))):
        for source in (model, None):
            try:
                traced = source or torch.fx.symbolic_trace(model)
                with quiet_torch():
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


class Importer:
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
                raise UnsupportedError(HINTS.get(str(node.target), f"no kernel for {node.target}"))
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
    path = "" if path.startswith("_empty_nn_module_stack") else path  # torch's own word for none
    kind = str(node.target).removeprefix("aten.").split(".")[0]
    is_leaf = stack and kind.replace("_", "") in str(stack[-1][1]).lower()
    return path if is_leaf else f"{path}.{kind}" if path else kind
