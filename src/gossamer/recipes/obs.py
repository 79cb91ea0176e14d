"""Optimal brain surgery on one layer: which weights go, and how the rest make up for them.

For inputs X (samples, columns) and Gram matrix G = X^T X, the output error of a changed row is d G d^T with d the
change. SparseGPT walks over the columns once; what a pruned weight leaves behind is spread over the columns to its
right, by the Cholesky factor of the inverse of G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, NumericsError
from ..sparsify.allocation import budget
from ..sparsify.patterns import NM, Block, Pattern, Unstructured

DAMPING = 0.01  # the authors' share of the mean diagonal
_FIRST_RUNG = 1e-8  # where the ladder starts if no damping was wanted
_HIGHEST = 1e4


@dataclass(frozen=True)
class Solved:
    """One layer's matrix after surgery.

    Attributes:
        weight: (rows, columns), 0 off the mask, in float64.
        mask: bool of that shape.
        damping: share of the mean diagonal of G that was added to its diagonal.
        dead: columns that no sample excites; they cost nothing and go first.
        error: d G d^T over w G w^T, summed over the rows; 0 where the layer's output was 0.
    """

    weight: Tensor
    mask: Tensor
    damping: float
    dead: int
    error: float


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern = Unstructured(),
    keep: int | None = None,
    *,
    damping: float = DAMPING,
    block: int = 128,
    name: str = "weight",
) -> Solved:
    """Prune a matrix so that its outputs on the calibration data change little.

    Args:
        weight: (rows, columns).
        gram: (columns, columns), X^T X of the layer's inputs.
        pattern: Unstructured, NM along the columns, or Block.
        keep: survivors, for patterns that leave the count free; every strip of columns keeps its share.
        damping: share of the mean diagonal of G to add to it. Where G stays singular it is raised tenfold until the
            factorisation succeeds.
        block: columns whose updates are applied together, and whose weights compete (authors' 128). Groups of N:M
            compete among themselves.
        name: of the weight, for messages.
    Raises:
        ConfigError: a pattern of whole rows or columns, a bad damping or block. NumericsError: NaN in G, or no
            damping helps. ShapeError: the pattern does not divide the matrix.
    Source: Frantar & Alistarh 2023 (SparseGPT), Algorithm 1.
    """
    strip = _strip(pattern, block, name)
    if not damping >= 0 or not math.isfinite(damping):
        raise ConfigError(f"damping must be a number >= 0, got {damping}")
    w, gram = weight.detach().double(), gram.double()
    if not bool(torch.isfinite(gram).all()):
        raise NumericsError(f"the calibration statistics of {name} have NaN or infinite entries")
    dead = gram.diagonal() == 0
    factor, used = inverse_factor(gram, dead, damping, name)
    importance = factor.diagonal().square().reciprocal() * ~dead  # 0 for dead columns: they go first
    new, mask = w.clone(), torch.zeros_like(w, dtype=torch.bool)
    width = max(strip, block // strip * strip)
    for start in range(0, w.shape[1], width):
        end = min(start + width, w.shape[1])
        errors = _strips(
            new[:, start:end],
            mask[:, start:end],
            factor[start:end, start:end],
            importance[start:end],
            _Counts(pattern, keep, tuple(w.shape), start),
            strip,
        )
        new[:, end:] -= errors @ factor[start:end, end:]
    return Solved(new, mask, used, int(dead.sum()), reconstruction_error(w, new, gram))


def reconstruction_error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """Squared change of the outputs over their squared size: tr(D G D^T) / tr(W G W^T), 0 for 0 / 0."""
    old, change = weight.double(), weight.double() - new.double()
    size = float(((old @ gram) * old).sum())
    return float(((change @ gram) * change).sum()) / size if size > 0 else 0.0


def inverse_factor(gram: Tensor, dead: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """U, upper triangular, with U^T U the inverse of the damped G, and the damping that it took.

    Dead columns are taken as uncorrelated with everything. The damping climbs a ladder of factors of ten.
    """
    scale = float(gram.diagonal().mean()) or 1.0
    used = damping
    while used <= _HIGHEST:
        damped = gram.clone()
        damped.diagonal().add_(used * scale)
        damped.diagonal().masked_fill_(dead, scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return factor, used
        used = max(10 * used, _FIRST_RUNG)
    raise NumericsError(f"the Hessian of {name} cannot be factorised, not even with damping {_HIGHEST:g}")


@dataclass(frozen=True)
class _Counts:
    """How many entries each strip of columns keeps, so that all strips sum to `keep`."""

    pattern: Pattern
    keep: int | None
    shape: tuple[int, ...]
    offset: int

    def project(self, scores: Tensor, first: int) -> Tensor:
        """The mask of a strip whose first column is `first` columns behind the offset."""
        if self.keep is None or self.pattern.fixed(self.shape) is not None:
            return self.pattern.project(scores)
        cell = self.pattern.cell(tuple(scores.shape))
        share = self.keep / (self.shape[0] * self.shape[1])
        begin = (self.offset + first) * self.shape[0] // cell
        end = begin + scores.numel() // cell
        return self.pattern.project(scores, (budget(share, end) - budget(share, begin)) * cell)


def _strip(pattern: Pattern, block: int, name: str) -> int:
    """Columns among which the weights compete."""
    if block < 1:
        raise ConfigError(f"block must be at least one column, got {block}")
    if isinstance(pattern, NM):
        return pattern.m
    if isinstance(pattern, Block):
        return max(1, block // pattern.cols) * pattern.cols
    if isinstance(pattern, Unstructured):
        return block
    raise ConfigError(f"sparsegpt cannot make {name} sparse by {pattern}; take unstructured, N:M or blocks")


def _strips(w: Tensor, mask: Tensor, factor: Tensor, importance: Tensor, counts: _Counts, strip: int) -> Tensor:
    """Prune some columns in place, spreading each one's loss over those to its right among them.

    Returns:
        (rows, columns): the losses, which the columns behind these are still to make up for.
    """
    errors = torch.zeros_like(w)
    for column in range(w.shape[1]):
        if column % strip == 0:
            part = slice(column, column + strip)
            mask[:, part] = counts.project(w[:, part].square() * importance[part], column)
        lost = torch.where(mask[:, column], 0.0, w[:, column]) / factor[column, column]
        w[:, column:] -= lost[:, None] * factor[column, column:]
        w[:, column].masked_fill_(~mask[:, column], 0.0)
        errors[:, column] = lost
    return errors
