"""A captured network: nodes over values, free of batch sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# What the native program runs; every other node is "torch".
PRODUCTS = ("conv", "linear", "depthwise")


@dataclass
class Node:
    """One operation.

    Attributes:
        op: conv, linear, depthwise, max_pool, mean, add, act, affine, copy, scale, or torch.
        name: of the layer that users know, such as "blocks.0.depthwise.conv".
        inputs: values read; `residual` apart.
        output: value written; -1 for a torch node that makes no tensor.
        shape: sizes as the operator's row of the step table wants them (csrc/engine/program.cpp).
        weight: (out, in, height, width), (out, in), or (channels, kernel, kernel) of a depthwise convolution.
        activation: a name of `gossamer.kernels.epilogue.ACTIVATIONS`.
        selects: a convolution that only picks and places pixels, made from slices and padding.
        rounds: its products may round to bfloat16.
        call: the traced node that a torch node runs.
        reason: why a torch node does not run natively.
    """

    op: str
    name: str
    inputs: list[int]
    output: int
    shape: tuple[int, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: int | None = None
    activation: str = "none"
    selects: bool = False
    rounds: bool = False
    call: Any = None
    reason: str = ""

    @property
    def reads(self) -> list[int]:
        return self.inputs if self.residual is None else [*self.inputs, self.residual]


@dataclass
class Graph:
    """Nodes in order of execution.

    Attributes:
        shapes: of each value, for one image; None for what only torch handles (any Python object).
        source, result: the network's input and output values.
        constants: traced name -> tensor, for torch nodes.
        names: traced name -> value.
        views: traced name -> the shape that torch gives one image of its value.
        output_shape: of one image; None where the output is no float32 batch.
        batch: the only batch size that works, or None for any.
    """

    nodes: list[Node] = field(default_factory=list)
    shapes: list[tuple[int, ...] | None] = field(default_factory=list)
    source: int = 0
    result: int = 0
    constants: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    views: dict[str, tuple[int, ...]] = field(default_factory=dict)
    output_shape: tuple[int, ...] | None = None
    batch: int | None = None

    def value(self, shape: tuple[int, ...] | None) -> int:
        """A new value."""
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def size(self, value: int) -> int:
        """Numbers of one image."""
        return math.prod(self.shapes[value] or ())

    def readers(self) -> dict[int, list[Node]]:
        """Value -> nodes that read it."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in node.reads:
                found.setdefault(value, []).append(node)
        return found

    def makers(self) -> dict[int, Node]:
        """Value -> the node that writes it."""
        return {node.output: node for node in self.nodes}
