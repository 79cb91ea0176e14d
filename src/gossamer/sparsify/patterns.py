"""Patterns: where zeros may lie. A pattern projects scores onto its legal masks, exactly, ties by index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ConfigError, MaskError, ShapeError
from ..kernels.topk import nm_mask, topk_mask


@runtime_checkable
class Pattern(Protocol):
    """A family of legal masks. Cells are the smallest pieces that are kept or dropped as one."""

    def cell(self, shape: tuple[int, ...]) -> int:
        """Entries in one cell of a tensor of this shape."""

    def cells(self, scores: Tensor) -> Tensor:
        """Scores of the cells, flat: the mean of their entries."""

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The mask of `shape` that keeps the cells in `kept` (flat, bool)."""

    def fixed(self, shape: tuple[int, ...]) -> int | None:
        """The only number of survivors this pattern allows, or None if any multiple of a cell is legal."""

    def project(self, scores: Tensor, keep: int | None = None) -> Tensor:
        """The legal mask with exactly `keep` survivors that maximises the sum of `scores`."""

    def check(self, mask: Tensor) -> None:
        """Raise MaskError if `mask` is not legal."""


class _Cells:
    """What all patterns with freely chosen cells share."""

    def cell(self, shape: tuple[int, ...]) -> int:
        raise AssertionError

    def cells(self, scores: Tensor) -> Tensor:
        raise AssertionError

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        raise AssertionError

    def fixed(self, shape: tuple[int, ...]) -> int | None:
        return None

    def project(self, scores: Tensor, keep: int | None = None) -> Tensor:
        """The legal mask with exactly `keep` survivors that maximises the sum of `scores`.

        Args:
            scores: real tensor of the weight's shape; larger means keep; no NaN.
            keep: survivors, 0 <= keep <= scores.numel(), a multiple of the cell size.
        Returns:
            bool mask of the shape of `scores`; ties go to the lower flat index.
        Raises:
            ShapeError: the pattern does not divide the shape. MaskError: impossible count. NumericsError: NaN.
        """
        shape = tuple(scores.shape)
        size = self.cell(shape)
        if keep is None or not 0 <= keep <= scores.numel() or keep % size:
            raise MaskError(f"{self} cannot keep {keep} of {scores.numel()} entries in cells of {size}")
        return self.expand(topk_mask(self.cells(scores), keep // size), shape)

    def check(self, mask: Tensor) -> None:
        shape = tuple(mask.shape)
        means = self.cells(mask.float())
        if not torch.equal(self.expand(means > 0.5, shape), mask):
            raise MaskError(f"mask of shape {shape} is not of pattern {self}")


@dataclass(frozen=True)
class Unstructured(_Cells):
    """Zeros anywhere."""

    def cell(self, shape: tuple[int, ...]) -> int:
        return 1

    def cells(self, scores: Tensor) -> Tensor:
        return scores.reshape(-1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.reshape(shape)


@dataclass(frozen=True)
class Block(_Cells):
    """Rectangles of `rows` x `cols` of the matrix (out, everything else): a cell of a convolution is contiguous
    in the order (in, kh, kw). Block(4, 1) is four output channels that share one input weight position."""

    rows: int = 4
    cols: int = 1

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        out, rest = shape[0], torch.Size(shape[1:]).numel()
        if out % self.rows or rest % self.cols:
            raise ShapeError(
                f"Block({self.rows}, {self.cols}) does not divide a weight of shape {shape} "
                f"(as a matrix {out} x {rest}); choose another block or exclude this layer"
            )
        return out // self.rows, rest // self.cols

    def cell(self, shape: tuple[int, ...]) -> int:
        self._grid(shape)
        return self.rows * self.cols

    def cells(self, scores: Tensor) -> Tensor:
        r, c = self._grid(tuple(scores.shape))
        return scores.reshape(r, self.rows, c, self.cols).mean((1, 3)).reshape(-1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        r, c = self._grid(shape)
        return kept.view(r, 1, c, 1).expand(r, self.rows, c, self.cols).reshape(shape)


@dataclass(frozen=True)
class Rows(_Cells):
    """Whole output rows: neurons of a Linear, filters of a convolution."""

    def cell(self, shape: tuple[int, ...]) -> int:
        return torch.Size(shape[1:]).numel()

    def cells(self, scores: Tensor) -> Tensor:
        return scores.reshape(scores.shape[0], -1).mean(1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


@dataclass(frozen=True)
class Cols(_Cells):
    """Whole input columns: input features of a Linear, input channels of a convolution."""

    def cell(self, shape: tuple[int, ...]) -> int:
        return torch.Size(shape).numel() // shape[1]

    def cells(self, scores: Tensor) -> Tensor:
        return scores.transpose(0, 1).reshape(scores.shape[1], -1).mean(1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()


@dataclass(frozen=True)
class NM:
    """At most n non-zeros (exactly n kept) in every m consecutive entries of the reduction dimension.

    Args:
        n, m: integers, 0 < n <= m and m >= 2.
        layout: for convolutions: "channels_last" groups input channels at a fixed kernel position (what the hardware
            wants), "oihw_flat" groups the flattened (in, kh, kw) order. A Linear groups its inputs in either.
        tail: what to do where m does not divide: "error"; "keep" the rest; "proportional": keep the same share.
    Source: Zhou et al. 2021 (SR-STE), section 3.1; layouts after 00-sparse-training-algebra.
    """

    n: int = 2
    m: int = 4
    layout: str = "channels_last"
    tail: str = "error"

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int or self.m < 2 or not 0 < self.n <= self.m:
            raise ConfigError(f"N:M needs integers m >= 2 and n in 1..m, got {self.n}:{self.m}")
        if self.layout not in ("channels_last", "oihw_flat"):
            raise ConfigError(f"N:M layout is 'channels_last' or 'oihw_flat', got {self.layout!r}")
        if self.tail not in ("error", "keep", "proportional"):
            raise ConfigError(f"N:M tail is 'error', 'keep' or 'proportional', got {self.tail!r}")

    def _as_rows(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x as a matrix whose rows are cut into groups, and the way back."""
        if x.ndim < 2:
            return x.reshape(1, -1), lambda y: y.reshape(x.shape)
        if self.layout == "oihw_flat" or x.ndim == 2:
            return x.reshape(x.shape[0], -1), lambda y: y.reshape(x.shape)
        moved = x.movedim(1, -1)
        return moved.reshape(-1, x.shape[1]), lambda y: y.reshape(moved.shape).movedim(-1, 1).contiguous()

    def _tail(self, length: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """(entries in the tail, how many of them are kept)."""
        rest = length % self.m
        if rest and self.tail == "error":
            raise ShapeError(
                f"{self.n}:{self.m} does not divide {length} entries of a weight of shape {shape}; "
                f"exclude the layer or set tail='keep' or 'proportional'"
            )
        kept = rest if self.tail == "keep" else round(rest * self.n / self.m)
        return rest, max(1, kept) if rest else 0

    def cell(self, shape: tuple[int, ...]) -> int:
        return 1

    def cells(self, scores: Tensor) -> Tensor:
        return scores.reshape(-1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.reshape(shape)

    def fixed(self, shape: tuple[int, ...]) -> int:
        length = self._as_rows(torch.empty(shape, device="meta"))[0].shape[1]
        _, kept = self._tail(length, shape)
        rows = torch.Size(shape).numel() // length
        return rows * (length // self.m * self.n + kept)

    def project(self, scores: Tensor, keep: int | None = None) -> Tensor:
        """The n largest scores of every group of m; `keep`, if given, must be what the pattern implies."""
        shape = tuple(scores.shape)
        rows, back = self._as_rows(scores)
        length = rows.shape[1]
        rest, tail_keep = self._tail(length, shape)
        if keep is not None and keep != self.fixed(shape):
            raise MaskError(f"{self.n}:{self.m} keeps {self.fixed(shape)} of {scores.numel()}, not {keep}")
        body = nm_mask(rows[:, : length - rest].contiguous(), self.n, self.m)
        if not rest:
            return back(body)
        tail = nm_mask(rows[:, length - rest :].contiguous(), tail_keep, rest)
        return back(torch.cat([body, tail], 1))

    def check(self, mask: Tensor) -> None:
        rows, _ = self._as_rows(mask)
        rest, tail_keep = self._tail(rows.shape[1], tuple(mask.shape))
        body = rows[:, : rows.shape[1] - rest].reshape(rows.shape[0], -1, self.m)
        if bool((body.sum(2) != self.n).any()) or (rest and bool((rows[:, -rest:].sum(1) != tail_keep).any())):
            raise MaskError(f"mask of shape {tuple(mask.shape)} is not {self.n}:{self.m}")
