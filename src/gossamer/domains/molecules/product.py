"""Tensor products of spherical features, channel by channel ("uuu"), over a list of paths, all or the gated ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, ShapeError

from .irreps import Path, block, three_j, triples, width
from .paths import PathGate


def normalisation(paths: Sequence[Path]) -> Tensor:
    """(paths,) sqrt((2 l3 + 1) / number of paths to l3): what e3nn takes for components and elements."""
    into = Counter(l3 for _, _, l3 in paths)
    return torch.tensor([math.sqrt((2 * l3 + 1) / into[l3]) for _, _, l3 in paths])


class PathProduct(nn.Module):
    """sum over paths p of c_p w_p (x (x) y)_p: one small matrix product for each pair of degrees that a path uses.

    Args:
        paths: degrees (l1, l2, l3).
        lmax: of the first operand and the result. second: of the second operand.
        coefficients: (paths,) c; None takes ones.
    Raises:
        ConfigError: a path that is not feasible.
    """

    component: Tensor
    gather: Tensor
    coefficients: Tensor

    def __init__(self, paths: Sequence[Path], lmax: int, second: int, coefficients: Tensor | None = None) -> None:
        super().__init__()
        bad = set(paths) - set(triples(lmax, second))
        if bad:
            raise ConfigError(f"paths {sorted(bad)} do not exist with degrees up to {lmax}, {second}, {lmax}")
        self.paths, self.second = tuple(paths), width(second)
        self.degrees = tuple(dict.fromkeys((l1, l2) for l1, l2, _ in paths))
        component: list[int] = []  # the path behind every column of the intermediate result
        target: list[int] = []  # the component that it is added to
        for pair in self.degrees:
            members = [n for n, path in enumerate(paths) if path[:2] == pair]
            symbols = [three_j(*paths[n]).flatten(0, 1) for n in members]
            self.register_buffer(_name(pair), torch.cat(symbols, 1).to(torch.get_default_dtype()), persistent=False)
            for n in members:
                component += [n] * (2 * paths[n][2] + 1)
                target += range(width(lmax))[block(paths[n][2])]
        gather = torch.zeros(len(target), width(lmax))
        gather[torch.arange(len(target)), target] = 1
        self.register_buffer("component", torch.tensor(component), persistent=False)
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("coefficients", torch.ones(len(paths)) if coefficients is None else coefficients)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """x (n, channels, width), y (n, channels or 1, second width), weights (n or 1, paths, channels) -> like x."""
        parts = []
        for pair in self.degrees:
            products = x[..., block(pair[0]), None] * y[..., None, block(pair[1])]
            parts.append(products.flatten(2) @ getattr(self, _name(pair)))
        scaled = (weights * self.coefficients[:, None]).transpose(1, 2)
        out: Tensor = (torch.cat(parts, 2) * scaled[..., self.component]) @ self.gather
        return out


def _name(pair: tuple[int, int]) -> str:
    """Of the table of 3j symbols, ((2 l1 + 1)(2 l2 + 1), components), of two degrees."""
    return f"table_{pair[0]}_{pair[1]}"


class SparseTensorProduct(nn.Module):
    """A product of which only the paths of a gate are computed.

    Args:
        lmax: degrees of the first operand and the result. second: of the second operand; default the same.
        sparsity, choice, seed: see `PathGate`.
    """

    def __init__(
        self, lmax: int, second: int | None = None, sparsity: float = 0.7, choice: str = "adaptive", seed: int = 0
    ) -> None:
        super().__init__()
        self.lmax, self.second = lmax, lmax if second is None else second
        self.paths = triples(lmax, self.second)
        self.gate = PathGate(self.paths, normalisation(self.paths), sparsity, choice, seed)
        self._current: tuple[tuple[int, ...], PathProduct] | None = None

    def current(self) -> PathProduct:
        """The plain product of the kept paths, without coefficients."""
        kept = tuple(self.gate.indices().tolist())
        if self._current is None or self._current[0] != kept:
            product = PathProduct([self.paths[i] for i in kept], self.lmax, self.second)
            self._current = (kept, product)
        where = self.gate.scores
        return self._current[1].to(where.device, where.dtype)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """As `PathProduct`; weights (n or 1, all paths, channels), or of the kept ones alone."""
        kept = self.gate.indices()
        if weights.shape[1] == len(self.paths):
            weights = weights[:, kept]
        if weights.shape[1] != len(kept):
            raise ShapeError(f"weights for {weights.shape[1]} paths; the product has {len(self.paths)}")
        out: Tensor = self.current()(x, y, weights * self.gate.coefficients()[:, None])
        return out

    def freeze(self) -> PathProduct:
        """The kept paths with their present coefficients as a plain, smaller product.

        Raises ConfigError in the random phase, where nothing has been chosen yet.
        """
        self.gate.check_frozen()
        kept = self.gate.indices().tolist()
        found = PathProduct([self.paths[i] for i in kept], self.lmax, self.second, self.gate.coefficients().detach())
        return found.to(self.gate.scores.device, self.gate.scores.dtype)
