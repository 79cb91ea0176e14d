"""Cells with dense and sparse operations: the DARTS space, its super-network, and the discrete networks it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from ..errors import ConfigError, unknown
from .operations import DARTS, NONE, PRIMITIVES, FactorizedReduction, relu_conv_norm
from .scored_layers import make_sparse
from .slots import OneOf, Slot
from .space import Architecture, SearchSpace, View

KINDS = ("normal", "reduce")


def cell_space(primitives: Sequence[str] = DARTS, steps: int = 4) -> SearchSpace:
    """The cells as a search space: for each kind and node two different inputs, and an operation for each.

    With the eight primitives and 4 steps it holds (1 * 3 * 6 * 10 * 7^8)^2 cells, about 10^18 as in DARTS.

    Raises:
        ConfigError: an unknown primitive, or only "none" to choose from.
    """
    real = _real(primitives)
    slots: list[Slot] = []
    for kind in KINDS:
        for node in range(steps):
            pairs = tuple(f"{a},{b}" for a, b in combinations(range(node + 2), 2))
            slots.append(OneOf(f"{kind}.{node}.inputs", pairs))
            slots.extend(OneOf(f"{kind}.{node}.{place}", real) for place in ("first", "second"))
    return SearchSpace(tuple(slots), draw=lambda a: _view(a, real, steps), name="the space of cells")


def _real(primitives: Sequence[str]) -> tuple[str, ...]:
    for name in primitives:
        if name not in PRIMITIVES:
            raise unknown("primitive", name, PRIMITIVES)
    real = tuple(name for name in primitives if name != NONE)
    if not real:
        raise ConfigError("all operations of an edge are 'none'; add at least one that computes something")
    return real


Edge = tuple[int, str]  # node that is read (0 and 1 are the cell's inputs), operation
Genotype = dict[str, list[tuple[Edge, Edge]]]  # kind -> per node its two edges


def genotype_of(architecture: Architecture, primitives: Sequence[str] = DARTS, steps: int = 4) -> Genotype:
    """The edges that an architecture of `cell_space` stands for."""
    real, values = _real(primitives), iter(architecture)
    out: Genotype = {}
    for kind in KINDS:
        out[kind] = []
        for node in range(steps):
            pair, one, two = (int(next(values)) for _ in range(3))  # type: ignore[arg-type]
            a, b = list(combinations(range(node + 2), 2))[pair]
            out[kind].append(((a, real[one]), (b, real[two])))
    return out


def _view(architecture: Architecture, real: Sequence[str], steps: int, kind: str = "normal") -> View:
    edges = genotype_of(architecture, real, steps)[kind]
    nodes = ("input 0", "input 1", *(f"node {i}" for i in range(steps)), "output")
    inner = [(a, i + 2, op) for i, pair in enumerate(edges) for a, op in pair]
    return View(nodes, (*inner, *((i + 2, steps + 2, "") for i in range(steps))))


def edge_count(steps: int) -> int:
    """Edges of a cell: every node reads both inputs and all nodes before it (14 for 4)."""
    return sum(node + 2 for node in range(steps))


def parse(alphas: Sequence[Tensor], primitives: Sequence[str] = DARTS, steps: int = 4) -> Architecture:
    """The architecture of the largest weights: per node the two edges whose best non-none operation weighs most.

    Args:
        alphas: (edges, primitives) of the normal and of the reduction cell.
    """
    real = _real(primitives)
    columns = [list(primitives).index(name) for name in real]
    values: list[int] = []
    for alpha in alphas:
        weights = alpha.detach().softmax(-1)[:, columns]
        start = 0
        for node in range(steps):
            best, which = weights[start : start + node + 2].max(1)
            a, b = sorted(best.argsort(descending=True, stable=True)[:2].tolist())
            pairs = list(combinations(range(node + 2), 2))
            values += [pairs.index((a, b)), int(which[a]), int(which[b])]
            start += node + 2
    return tuple(values)


class MixedOp(nn.Module):
    """All operations of an edge, weighted."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.operations, strict=True))


class Preprocessing(nn.Module):
    """Both inputs of a cell at its channels and size."""

    def __init__(self, before: int, last: int, channels: int, shrunk: bool, affine: bool) -> None:
        super().__init__()
        self.one = (FactorizedReduction if shrunk else relu_conv_norm)(before, channels, affine)
        self.two = relu_conv_norm(last, channels, affine)

    def forward(self, x0: Tensor, x1: Tensor) -> list[Tensor]:
        return [self.one(x0), self.two(x1)]


class SearchCell(nn.Module):
    """A cell with every edge and every operation."""

    def __init__(
        self, primitives: Sequence[str], steps: int, widths: tuple[int, int, int], reduction: bool, shrunk: bool
    ) -> None:
        super().__init__()
        self.steps = steps
        self.inputs = Preprocessing(*widths, shrunk, affine=False)
        self.edges = nn.ModuleList(
            MixedOp([PRIMITIVES[p](widths[2], 2 if reduction and source < 2 else 1, False) for p in primitives])
            for node in range(steps)
            for source in range(node + 2)
        )

    def forward(self, x0: Tensor, x1: Tensor, weights: Tensor) -> Tensor:
        states, place = self.inputs(x0, x1), 0
        for node in range(self.steps):
            rows = range(place, place + node + 2)
            states.append(sum(self.edges[e](h, weights[e]) for e, h in zip(rows, states, strict=True)))
            place += node + 2
        return torch.cat(states[2:], 1)


class Cell(nn.Module):
    """A cell with the edges of a genotype."""

    def __init__(
        self, edges: list[tuple[Edge, Edge]], widths: tuple[int, int, int], reduction: bool, shrunk: bool, affine: bool
    ) -> None:
        super().__init__()
        self.sources = [(a, b) for (a, _), (b, _) in edges]
        self.inputs = Preprocessing(*widths, shrunk, affine)
        self.operations = nn.ModuleList(
            PRIMITIVES[op](widths[2], 2 if reduction and source < 2 else 1, affine)
            for pair in edges
            for source, op in pair
        )
        self.drop = 0.0

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        states = self.inputs(x0, x1)
        for node, (a, b) in enumerate(self.sources):
            parts = [self._edge(2 * node, states[a]), self._edge(2 * node + 1, states[b])]
            states.append(parts[0] + parts[1])
        return torch.cat(states[2:], 1)

    def _edge(self, index: int, x: Tensor) -> Tensor:
        operation = self.operations[index]
        out: Tensor = operation(x)
        if self.training and self.drop > 0 and not isinstance(operation, nn.Identity):
            alive = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop
            out = out * alive / (1 - self.drop)
        return out


class _Stack(nn.Module):
    """Stem, cells and classifier: what the super-network and a discrete network share."""

    def __init__(
        self, make: Callable[[tuple[int, int, int], bool, bool], nn.Module], shape: Sequence[int], classes: int,
        channels: int, layers: int, steps: int, stem: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if layers < 1 or channels < 1:
            raise ConfigError(f"a network needs channels and layers >= 1, got {channels} and {layers}")
        first = stem * channels
        self.stem = nn.Sequential(nn.Conv2d(shape[0], first, 3, padding=1, bias=False), nn.BatchNorm2d(first))
        self.cells = nn.ModuleList()
        before = last = first
        self.reductions = {layers // 3, 2 * layers // 3} if layers > 2 else set()
        self.widths: list[int] = []
        shrunk = False
        for index in range(layers):
            reduction = index in self.reductions
            channels *= 2 if reduction else 1
            self.cells.append(make((before, last, channels), reduction, shrunk))
            before, last, shrunk = last, steps * channels, reduction
            self.widths.append(last)
        self.head = nn.Linear(last, classes)


class SuperNet(_Stack):
    """The DARTS super-network with sparse operations; `alphas` are searched, everything else is trained.

    Args:
        channels, layers: 16 and 8 at full size; reductions at 1/3 and 2/3 of the depth.
        primitives, steps: the cell space. stem: width of the stem over `channels` (3).
        shape, classes: of one input, of the output.
    """

    def __init__(
        self, *, shape: Sequence[int] = (3, 32, 32), classes: int = 10, channels: int = 16, layers: int = 8,
        primitives: Sequence[str] = DARTS, steps: int = 4, stem: int = 3,
    ) -> None:  # fmt: skip
        self.space = cell_space(primitives, steps)
        self.primitives, self.steps = tuple(primitives), steps
        super().__init__(
            lambda widths, reduction, shrunk: SearchCell(self.primitives, steps, widths, reduction, shrunk),
            shape, classes, channels, layers, steps, stem,
        )  # fmt: skip
        make_sparse(self)
        size = (edge_count(steps), len(self.primitives))
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(size)) for _ in KINDS)

    def forward(self, x: Tensor) -> Tensor:
        x0 = x1 = self.stem(x)
        weights = [alpha.softmax(-1) for alpha in self.alphas]
        for index, cell in enumerate(self.cells):
            x0, x1 = x1, cell(x0, x1, weights[int(index in self.reductions)])
        out: Tensor = self.head(x1.mean((2, 3)))
        return out

    def architecture(self) -> Architecture:
        """What the present alphas stand for."""
        return parse(list(self.alphas), self.primitives, self.steps)


class CellNet(_Stack):
    """The network of one architecture.

    Args:
        drop_path: probability with which a path is dropped in training (0.2 at full size). auxiliary: a second
            classifier at 2/3 of the depth; in training the output is then the pair (logits, auxiliary logits).
            Others as `SuperNet`; 36 channels and 20 layers are the size "Small".
    """

    def __init__(
        self, architecture: Architecture, *, shape: Sequence[int] = (3, 32, 32), classes: int = 10, channels: int = 36,
        layers: int = 20, primitives: Sequence[str] = DARTS, steps: int = 4, stem: int = 3, drop_path: float = 0.0,
        auxiliary: bool = False, affine: bool = True,
    ) -> None:  # fmt: skip
        genotype = genotype_of(architecture, primitives, steps)

        def make(widths: tuple[int, int, int], reduction: bool, shrunk: bool) -> Cell:
            return Cell(genotype[KINDS[int(reduction)]], widths, reduction, shrunk, affine)

        super().__init__(make, shape, classes, channels, layers, steps, stem)
        self.set_drop_path(drop_path)
        self.tap = 2 * layers // 3 if auxiliary else -1
        self.second = nn.Linear(self.widths[self.tap], classes) if auxiliary else None

    def set_drop_path(self, probability: float) -> None:
        """The authors raise it linearly over training."""
        for cell in self.cells:
            cell.drop = probability  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x0 = x1 = self.stem(x)
        aside = None
        for index, cell in enumerate(self.cells):
            x0, x1 = x1, cell(x0, x1)
            if index == self.tap and self.second is not None and self.training:
                aside = self.second(x1.mean((2, 3)))
        out: Tensor = self.head(x1.mean((2, 3)))
        return out if aside is None else (out, aside)


SIZES = {"tiny": (30, 16), "small": (36, 20), "medium": (86, 12), "large": (108, 14)}  # channels, layers
