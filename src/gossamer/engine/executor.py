"""Runs an assembled graph: native steps in one call each run, other nodes through torch in between."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import map_arg

from gossamer.engine.assemble import Assembly
from gossamer.engine.graph import Graph, Node
from gossamer.engine.runtime import Machine
from gossamer.kernels.epilogue import ACTIVATIONS


class Executor:
    """A network as native steps and torch nodes. Threads may share it."""

    def __init__(self, graph: Graph, assembly: Assembly) -> None:
        self.graph, self.assembly = graph, assembly
        self.machine = Machine(assembly.tables)

    def __call__(self, x: Tensor, threads: int, clock: Clock | None = None) -> Any:
        """The output for contiguous float32 images (batch, ...)."""
        if self.assembly.is_native:
            return self._run_native(x, threads, clock)
        return _Run(self, x, threads).run(clock)

    def _run_native(self, x: Tensor, threads: int, clock: Clock | None) -> Tensor:
        images, graph = x.shape[0], self.graph
        y = torch.empty((images, *(graph.output_shape or ())))
        ends = ((graph.source, x.data_ptr()), (graph.result, y.data_ptr()))
        self.machine.run_ends(ends, images, threads, clock.steps if clock else None)
        return y


class Clock:
    """Nanoseconds of each native step and of each torch node, over one run."""

    def __init__(self, executor: Executor) -> None:
        self.steps = np.zeros(len(executor.assembly.tables.steps), np.int64)
        self.nodes: dict[int, int] = {}
        self._owners = executor.assembly.owners

    def by_node(self) -> dict[int, float]:
        """id of node -> microseconds."""
        found = {key: value / 1e3 for key, value in self.nodes.items()}
        for owner, value in zip(self._owners, self.steps.tolist(), strict=True):
            found[id(owner)] = found.get(id(owner), 0.0) + value / 1e3
        return found


class _Run:
    """One call of a network that torch runs in part: all images go together."""

    def __init__(self, executor: Executor, x: Tensor, threads: int) -> None:
        self.graph, self.assembly, self.machine = executor.graph, executor.assembly, executor.machine
        self.images, self.threads = len(x), threads
        self.addresses = np.zeros(len(self.graph.shapes), np.uint64)
        self.objects: dict[int, Any] = {}
        self.arena = torch.from_numpy(self.machine.arena(max(1, self.images)))
        self._keep(self.graph.source, x)

    def run(self, clock: Clock | None) -> Any:
        result = self.graph.result
        if not self.assembly.borrowed:
            self._keep(result, torch.empty((self.images, *(self.graph.shapes[result] or ()))))
        for part in self.assembly.parts:
            if part.node is None:
                steps = clock.steps if clock else None
                self.machine.run(
                    self.addresses,
                    self.images,
                    self.threads,
                    steps=(part.begin, part.end),
                    nanoseconds=steps,
                )
                continue
            start = time.perf_counter_ns()
            self._keep(part.node.output, self._by_torch(part.node))
            if clock:
                clock.nodes[id(part.node)] = time.perf_counter_ns() - start
        found = self.objects[result]
        if self.graph.output_shape is not None:
            found = found.view(self.images, *self.graph.output_shape)
        return found.clone() if self.assembly.borrowed and isinstance(found, Tensor) else found

    def _keep(self, value: int, found: Any) -> None:
        """An object outside of the arena; native steps need it contiguous."""
        if self.graph.shapes[value] is not None:
            found = found.contiguous()
            self.addresses[value] = found.data_ptr()
        self.objects[value] = found

    def _by_torch(self, node: Node) -> Any:
        if node.call is None:
            made = run_layer(node, *(self._tensor(v) for v in node.reads))
            return made.view(self.images, *(self.graph.shapes[node.output] or ()))
        args = map_arg(node.call.args, self._argument)
        return node.call.target(*args, **map_arg(node.call.kwargs, self._argument))

    def _argument(self, traced: Any) -> Any:
        name = traced.name
        if name in self.graph.constants:
            return self.graph.constants[name]
        value = self.graph.names[name]
        shape = self.graph.views.get(name)
        if shape is None:
            return self.objects[value]
        return self._tensor(value).view(self.images, *shape)

    def _tensor(self, value: int) -> Tensor:
        if value in self.objects:
            return self.objects[value]
        offset = int(self.assembly.tables.values[value, 0]) * max(1, self.images)
        shape = (self.images, *(self.graph.shapes[value] or ()))
        return self.arena[offset : offset + self.images * self.graph.size(value)].view(shape)


def run_layer(node: Node, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """A convolution or fully connected layer by torch, with all that is fused into it."""
    assert node.weight is not None
    if node.op == "linear":
        y = F.linear(x.reshape(-1, node.weight.shape[1]), node.weight, node.bias)
    elif node.shape[3:9] == (1, 1, 1, 1, 0, 0) and len(x) == 1:
        y = torch.mm(node.weight.flatten(1), x.view(node.shape[0], -1)).view(1, -1, *x.shape[2:])
        y = y if node.bias is None else y.add_(node.bias.view(-1, 1, 1))
    else:
        stride, padding, dilation = node.shape[5:7], node.shape[7:9], node.shape[9:11]
        y = F.conv2d(x, node.weight, node.bias, stride, padding, dilation)
    if residual is not None:
        y = y.add_(residual.view_as(y))
    return y if node.activation == "none" else ACTIVATIONS[node.activation](y)
