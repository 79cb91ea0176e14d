"""From a graph and the chosen formats to the tables that the native program runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.engine import memory
from gossamer.engine.graph import Graph, Node
from gossamer.engine.packing import CODE, DENSE, TORCH, Packer
from gossamer.engine.runtime import STEP_WIDTH, Tables, aligned
from gossamer.kernels.epilogue import activation_code
from gossamer.kernels.formats import PackedWeight

# enum class Op in csrc/engine/program.hpp; "act" is an addition without a second operand.
_OPS = {"conv": 0, "linear": 1, "depthwise": 2, "max_pool": 3, "mean": 4, "add": 5, "act": 5, "cat": 6, "scale": 7}
_SEPARABLE = 8  # a depthwise convolution and the 1x1 convolution after it, in one step
_LEAST_JOINED = 1 << 16  # floats between the two: fewer stay in the cache anyhow
_TYPES = {torch.float32: 0, torch.int32: 1, torch.uint16: 2, torch.int64: 3, torch.bfloat16: 4}
_SLACK = 64  # bytes that stay readable after each array


@dataclass(frozen=True)
class Choice:
    """How a layer runs.

    Attributes:
        kind: a key of `FORMATS`, or "torch".
        rows: a key of `ROW_FORMATS` for fully connected layers with few vectors, or None.
    """

    kind: str = DENSE
    rows: str | None = None


@dataclass(frozen=True)
class Part:
    """A run of the schedule: native steps [begin, end), or one node that torch runs."""

    begin: int
    end: int
    node: Node | None = None


@dataclass(frozen=True)
class Assembly:
    """Tables, what runs in which order, and which node each native step belongs to."""

    tables: Tables
    parts: list[Part]
    owners: list[Node]
    outside: frozenset[int]
    borrowed: bool  # the result of a torch node may lie in the arena
    joined: tuple[Node, ...] = ()  # depthwise nodes that run in the step of the next one

    @property
    def is_native(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].node is None


def assemble(graph: Graph, choices: Mapping[int, Choice], packer: Packer, join: bool = False) -> Assembly:
    """Lay out memory and write the steps. `choices` go by id of the node; what is missing runs dense.

    Args:
        join: run depthwise convolutions with large outputs together with the 1x1 convolution that reads them, strip
            by strip, so that what lies between never leaves the cache.
    """
    builder = _Builder(graph, choices, packer, join_pairs(graph, choices) if join else {})
    for node in graph.nodes:
        builder.add(node)
    return builder.finish()


def join_pairs(graph: Graph, choices: Mapping[int, Choice]) -> dict[int, Node]:
    """id of a 1x1 convolution -> the depthwise convolution that can run in the same step."""
    makers, readers = graph.makers(), graph.readers()
    pairs = {}
    for node in graph.nodes:
        maker = makers.get(node.inputs[0]) if node.op == "conv" and node.shape[3:9] == (1, 1, 1, 1, 0, 0) else None
        if (
            maker is not None
            and maker.op == "depthwise"
            and maker.residual is None
            and maker.output != graph.result
            and len(readers[maker.output]) == 1
            and node.residual != maker.output
            and graph.size(maker.output) >= _LEAST_JOINED
            and choices.get(id(node), Choice()).kind != TORCH
        ):
            pairs[id(node)] = maker
    return pairs


class _Builder:
    def __init__(self, graph: Graph, choices: Mapping[int, Choice], packer: Packer, pairs: Mapping[int, Node]) -> None:
        self.graph, self.choices, self.packer, self.pairs = graph, choices, packer, pairs
        self.inside = {id(node) for node in pairs.values()}  # depthwise nodes without a step of their own
        self.steps: list[list[int]] = []
        self.owners: list[Node] = []
        self.parts: list[Part] = []
        self.arrays: list[Tensor] = []
        self.matrices: list[list[int]] = []

    def add(self, node: Node) -> None:
        if id(node) in self.inside:
            return
        if node.op == "torch" or self._choice(node).kind == TORCH:
            self.parts.append(Part(len(self.steps), len(self.steps), node))
            return
        begin = len(self.steps)
        self.steps += self._rows(node)
        self.owners += [node] * (len(self.steps) - begin)
        if self.parts and self.parts[-1].node is None:
            begin = self.parts.pop().begin
        self.parts.append(Part(begin, len(self.steps)))

    def _choice(self, node: Node) -> Choice:
        return self.choices.get(id(node), Choice())

    def _rows(self, node: Node) -> list[list[int]]:
        op, code = _OPS[node.op], activation_code(node.activation)
        if node.op == "cat":
            return [
                [op, value, node.output, -1, -1, -1, -1, 0, *_filled((start,))]
                for value, start in zip(node.inputs, node.shape, strict=True)
            ]
        other = node.inputs[1] if len(node.inputs) > 1 else -1 if node.residual is None else node.residual
        if id(node) in self.pairs:
            return [self._separable(self.pairs[id(node)], node, other)]
        weights = rows = bias = -1
        if node.op == "depthwise":
            weights = self._array(node.weight)
        elif node.weight is not None:
            choice = self._choice(node)
            weights = self._matrix(self.packer(node, choice.kind))
            rows = -1 if choice.rows is None else self._matrix(self.packer(node, choice.rows))
        if node.bias is not None:
            bias = self._array(node.bias)
        return [[op, node.inputs[0], node.output, other, weights, rows, bias, code, *_filled(node.shape)]]

    def _separable(self, first: Node, node: Node, residual: int) -> list[int]:
        weights = self._matrix(self.packer(node, self._choice(node).kind))
        shape = (*first.shape, self._array(first.bias), activation_code(first.activation))
        arrays = (self._array(first.weight), self._array(node.bias))
        code = activation_code(node.activation)
        return [_SEPARABLE, first.inputs[0], node.output, residual, weights, *arrays, code, *_filled(shape)]

    def _array(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        self.arrays.append(tensor.detach().contiguous())
        return len(self.arrays) - 1

    def _matrix(self, packed: PackedWeight) -> int:
        kind = {"bitmap": 1, "csr16": 1, CODE: 2, "bf16": 3}.get(packed.kind, 0)
        bits = self._array(packed.bits) if packed.kind == "bitmap" else -1
        indices = -1 if packed.kind == "bitmap" else self._array(packed.indices)
        places = [self._array(packed.pointers), indices, self._array(packed.values), bits]
        sizes = [packed.rows, packed.columns, packed.block, packed.panel]
        self.matrices.append([kind, *sizes, *places])
        return len(self.matrices) - 1

    def finish(self) -> Assembly:
        by_torch = {part.node.output for part in self.parts if part.node is not None}
        outside = frozenset(by_torch | {self.graph.source, self.graph.result})
        offsets, length = self._places(outside)
        values = [
            [offsets.get(v, -1), self.graph.size(v)] if v in offsets or v in outside else [0, 0]
            for v in range(len(self.graph.shapes))
        ]
        arrays, constants = _laid_out(self.arrays)
        tables = Tables(
            _table(self.steps, STEP_WIDTH), _table(values, 2), arrays, _table(self.matrices, 9), constants, length
        )
        borrowed = self.graph.result in by_torch
        return Assembly(tables, self.parts, self.owners, outside, borrowed, tuple(self.pairs.values()))

    def _places(self, outside: frozenset[int]) -> tuple[dict[int, int], int]:
        """The result of a torch node may be a view of what it read, which then has to stay as long."""
        held: dict[int, set[int]] = {}
        steps: list[tuple[list[int], int]] = []
        for node in self.graph.nodes:
            if id(node) in self.inside:
                continue
            first = self.pairs.get(id(node))
            direct = [*first.inputs, *([] if node.residual is None else [node.residual])] if first else node.reads
            reads = {*direct}.union(*(held.get(v, set()) for v in direct))
            if node.op == "torch":
                held[node.output] = reads
            steps.append((sorted(reads), node.output))
        used = {v for reads, written in steps for v in (*reads, written)} - outside
        return memory.place({v: self.graph.size(v) for v in used}, steps)


def _filled(shape: tuple[int, ...]) -> list[int]:
    return [*shape, *[0] * (STEP_WIDTH - 8 - len(shape))]


def _table(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(len(rows), width)


def _laid_out(arrays: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays one after another, each from a multiple of 64 bytes on."""
    table, start = [], 0
    for tensor in arrays:
        table.append([start, tensor.numel(), _TYPES[tensor.dtype]])
        start += -(-(tensor.nbytes + _SLACK) // 64) * 64
    constants = aligned(start, np.uint8)
    constants[:] = 0
    for (begin, *_), tensor in zip(table, arrays, strict=True):
        if tensor.numel():
            constants[begin : begin + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8).numpy()
    return _table(table, 3), constants
