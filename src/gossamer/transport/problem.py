"""A checked batch of transport problems, each column of the plan laid out as one row in memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError

AXES = ("columns", "rows")
MASS_TOLERANCE = 1e-6  # relative difference of the two total masses that is taken for rounding


@dataclass(frozen=True, eq=False)
class Problem:
    """B problems with n constrained lines (columns of the plan) over m entries each.

    Attributes:
        cost: (B, n, m), the transposed cost; +inf where an entry is masked.
        a: (B, m) mass of the entries. b: (B, n) mass of the constrained lines.
    """

    cost: Tensor
    a: Tensor
    b: Tensor

    @property
    def mass(self) -> Tensor:
        """(B,) total mass."""
        return self.a.sum(-1)


def check_problem(
    cost: Tensor, a: Tensor | None, b: Tensor | None, axis: str, mask: Tensor | None, dtype: torch.dtype
) -> Problem:
    """Checks everything a user can get wrong, then turns and flattens the batch.

    Args:
        cost: (..., m, n). a: (..., m) or (m,); None: 1 / m each. b: (..., n) or (n,); None: 1 / n each.
        axis: the lines with few non-zeros, "columns" or "rows" (which swaps the roles of a and b).
        mask: (..., m) or (m,) bool, False for rows that are padding. Their `a` counts as 0, and their cost is not read.
        dtype: that is computed in.
    Raises:
        ConfigError: an unknown axis, or integer or complex costs. ShapeError: shapes disagree or are empty.
        NumericsError: a cost or marginal is NaN or infinite, a marginal is negative or has no mass, or the total masses
        differ.
    """
    if axis not in AXES:
        raise ConfigError(f"axis must be 'columns' or 'rows', got {axis!r}")
    if cost.dim() < 2 or 0 in cost.shape:
        raise ShapeError(f"a cost has shape (..., rows, columns), none of them empty; got {tuple(cost.shape)}")
    if not cost.is_floating_point():
        raise ConfigError(f"costs must be real floating-point numbers, got {cost.dtype}; use cost.double()")
    m, n = cost.shape[-2:]
    lead = cost.shape[:-2]
    kept = torch.ones(m, dtype=torch.bool, device=cost.device) if mask is None else _mask(mask, lead, m)
    cost = cost.detach().to(dtype).masked_fill(~kept.unsqueeze(-1), 0.0)
    _finite("cost", cost)
    if a is None:
        a = kept.to(dtype) / kept.sum(-1, keepdim=True)
    first = _marginal("a", a, lead, m, cost) * kept
    second = _marginal("b", torch.full((n,), 1 / n, dtype=dtype) if b is None else b, lead, n, cost)
    second = second * _same_mass(first, second)
    cost = cost.masked_fill(~kept.unsqueeze(-1), torch.inf)
    if axis == "columns":
        cost = cost.transpose(-1, -2)
    else:
        first, second = second, first
    rows = cost.reshape(-1, *cost.shape[-2:]).contiguous()
    return Problem(rows, _flat(first, lead), _flat(second, lead))


def check_k(k: int, problem: Problem) -> None:
    """Raises ConfigError for k beyond the entries of a line; warns where so few non-zeros cannot cover all mass."""
    n, m = problem.cost.shape[1:]
    if k > m:
        raise ConfigError(f"k = {k} non-zeros, but a line has only {m} entries; for no limit use Quadratic(gamma)")
    wanted = int((problem.a > 0).sum(-1).max())
    if k * n < wanted:
        warnings.warn(
            f"{n} lines with at most {k} non-zeros reach {k * n} entries, but {wanted} have mass: some must go "
            f"without, so the marginals cannot be met; take k of at least {-(-wanted // n)}",
            stacklevel=4,
        )


def _mask(mask: Tensor, lead: torch.Size, m: int) -> Tensor:
    if mask.dtype is not torch.bool or mask.shape not in ((m,), (*lead, m)):
        raise ShapeError(f"mask must be bool of shape {(*lead, m)} or {(m,)}, got {mask.dtype} {tuple(mask.shape)}")
    if not bool(mask.any(-1).all()):
        raise ShapeError("the mask leaves a problem without rows")
    return mask


def _finite(name: str, values: Tensor) -> None:
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        where = tuple(bad[0].tolist())
        raise NumericsError(f"{name} must be finite, but is {float(values[where])} at index {where}")


def _marginal(name: str, given: Tensor, lead: torch.Size, size: int, cost: Tensor) -> Tensor:
    if given.shape not in ((size,), (*lead, size)):
        shapes = " or ".join(map(str, dict.fromkeys([(*lead, size), (size,)])))
        raise ShapeError(f"marginal {name} must have shape {shapes}, got {tuple(given.shape)}")
    values = given.detach().to(cost.device, cost.dtype)
    _finite(f"marginal {name}", values)
    if bool((values < 0).any()):
        where = tuple((values < 0).nonzero()[0].tolist())
        raise NumericsError(f"marginal {name} must not be negative, but is {float(values[where])} at index {where}")
    if not bool((values.sum(-1) > 0).all()):
        raise NumericsError(f"marginal {name} has no mass: all its entries are 0")
    return values


def _same_mass(a: Tensor, b: Tensor) -> Tensor:
    """(..., 1) factor that takes the rounding out of b, so that both masses are equal to the last digit."""
    first, second = torch.broadcast_tensors(a.sum(-1), b.sum(-1))
    tolerance = max(MASS_TOLERANCE, 16 * torch.finfo(a.dtype).eps)
    off = (first - second).abs() > tolerance * torch.maximum(first, second)
    if bool(off.any()):
        where = tuple(off.nonzero()[0].tolist())
        raise NumericsError(
            f"total masses differ: {float(first[where]):.8g} in a, {float(second[where]):.8g} in b; "
            "rescale one of them to the sum of the other"
        )
    return (first / second).unsqueeze(-1)


def _flat(marginal: Tensor, lead: torch.Size) -> Tensor:
    return marginal.expand(*lead, marginal.shape[-1]).reshape(-1, marginal.shape[-1])
