"""What can be computed beforehand, or in the same step: normalisation, residual additions, activations."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.engine.graph import PRODUCTS, Graph, Node


def fuse(graph: Graph) -> None:
    """Fold normalisation into weights, and additions and activations into the step that makes their operand.

    Folding is exact up to rounding: scale and shift are computed in float64.
    """
    for rewrite in (_join_selections, _fold_affine, _fuse_addition, _fuse_activation):
        _rewrite(graph, rewrite)
    for node in graph.nodes:
        if node.op == "affine":
            _as_convolution(graph, node)


def _rewrite(graph: Graph, rewrite) -> None:  # type: ignore[no-untyped-def]
    """Offer each node to `rewrite(graph, node, position)`; True means that the node is gone."""
    order = list(graph.nodes)
    for node in order:
        if rewrite(graph, node):
            graph.nodes.remove(node)


def _private(graph: Graph, value: int, ops: tuple[str, ...]) -> Node | None:
    """The maker of a value that nobody else reads, if it is one of `ops` and still linear."""
    readers = [node for node in graph.nodes if value in node.reads]
    makers = [node for node in graph.nodes if node.output == value]
    if len(readers) != 1 or readers[0].reads.count(value) != 1 or value == graph.result or not makers:
        return None
    node = makers[0]
    return node if node.op in ops and node.activation == "none" else None


def _take_over(maker: Node, node: Node) -> bool:
    """`maker` writes what `node` wrote."""
    maker.output = node.output
    return True


def _fold_affine(graph: Graph, node: Node) -> bool:
    if node.op != "affine":
        return False
    maker = _private(graph, node.inputs[0], PRODUCTS)
    if maker is None or maker.residual is not None or maker.weight is None:
        return False
    scale, shift = node.weight, node.bias
    assert scale is not None
    assert shift is not None
    wide = maker.weight.double() * scale.view(-1, *[1] * (maker.weight.dim() - 1))
    bias = shift if maker.bias is None else shift + maker.bias.double() * scale
    maker.weight, maker.bias = _kept_zeros(wide, maker.weight), bias.float()
    return _take_over(maker, node)


def _kept_zeros(wide: Tensor, weight: Tensor) -> Tensor:
    """Zeros stay exact zeros, of positive sign."""
    return torch.where(weight == 0, 0.0, wide).float()


def _fuse_addition(graph: Graph, node: Node) -> bool:
    if node.op != "add" or len(node.inputs) != 2:
        return False
    position = {made.output: place for place, made in enumerate(graph.nodes)}
    a, b = node.inputs
    later, other = (a, b) if position.get(a, -1) > position.get(b, -1) else (b, a)
    maker = _private(graph, later, PRODUCTS)
    if maker is None or maker.residual is not None:
        return False
    maker.residual = other
    return _take_over(maker, node)


def _fuse_activation(graph: Graph, node: Node) -> bool:
    if node.op != "act":
        return False
    maker = _private(graph, node.inputs[0], (*PRODUCTS, "add"))
    if maker is None:
        return False
    maker.activation = node.activation
    return _take_over(maker, node)


def _join_selections(graph: Graph, node: Node) -> bool:
    """Two convolutions that pick pixels become one: W2 W1 with the product of the strides."""
    if node.op != "conv" or not node.selects or node.shape[3:5] != (1, 1):
        return False
    maker = _private(graph, node.inputs[0], ("conv",))
    if maker is None or not maker.selects or maker.weight is None or node.weight is None:
        return False
    if maker.shape[3:5] != (1, 1):
        return False
    joined = node.weight[:, :, 0, 0] @ maker.weight[:, :, 0, 0]
    maker.weight = joined[:, :, None, None]
    strides = (maker.shape[5] * node.shape[5], maker.shape[6] * node.shape[6])
    maker.shape = (*maker.shape[:5], *strides, *maker.shape[7:])
    return _take_over(maker, node)


def _as_convolution(graph: Graph, node: Node) -> None:
    """A normalisation that follows no product has a diagonal weight: a 1x1 convolution, or linear on vectors."""
    assert node.weight is not None
    assert node.bias is not None
    channels, *rest = graph.shapes[node.output] or ()
    if not rest:
        node.op, node.shape = "linear", (1,)
        node.weight, node.bias = torch.diag(node.weight).float(), node.bias.float()
        return
    height, width = (*rest, 1, 1)[:2]
    node.op, node.selects = "conv", True
    node.shape = (channels, height, width, 1, 1, 1, 1, 0, 0, 1, 1)
    node.weight = torch.diag(node.weight).float()[:, :, None, None]
    node.bias = node.bias.float()
