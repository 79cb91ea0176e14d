"""Exact selection: masks with exactly the asked number of survivors.

Larger scores survive; among equal scores the lower flat index survives; -inf loses to everything but may be
kept; NaN is an error. The result is the same for any number of threads.

    >>> topk_mask(torch.tensor([3.0, 1.0, 3.0, 3.0]), 2).tolist()
    [True, False, True, False]
    >>> topk_rows(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), [1, 2]).tolist()
    [[False, True], [True, True]]
    >>> nm_mask(torch.tensor([4.0, 1.0, 2.0, 3.0]), 2, 4).tolist()
    [True, False, False, True]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.kernels import native

_NATIVE_KINDS = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2}
_NATIVE_MOST_M = 32  # larger groups are cheaper to sort (kMostM in mask_kernels.cpp)


def topk_mask(scores: Tensor, k: int, *, name: str = "scores") -> Tensor:
    """The k largest of all scores.

    Args:
        scores: any shape, any real dtype. No NaN.
        k: survivors, 0 <= k <= scores.numel().
        name: what an error message calls the scores.
    Returns:
        bool mask of the shape of `scores` with exactly k True.
    Raises:
        NumericsError: a score is NaN.
        ConfigError: k is out of range.
    """
    k = int(k)
    if not 0 <= k <= scores.numel():
        raise ConfigError(f"cannot keep {k} of the {scores.numel()} {name}: need 0 <= k <= {scores.numel()}")
    scores = scores.detach()
    if _fits_native(scores):
        return _native_rows(scores, scores.numel(), torch.tensor([k]), name)
    return topk_mask_reference(_comparable(scores, name), k)


def topk_mask_reference(scores: Tensor, k: int) -> Tensor:
    """`topk_mask` in plain torch, on any device, for scores without NaN."""
    if k in (0, scores.numel()):
        return torch.full(scores.shape, k > 0, dtype=torch.bool, device=scores.device)
    flat = scores.reshape(-1)
    smallest_kept = torch.kthvalue(flat, flat.numel() - k + 1).values
    mask = flat > smallest_kept
    _fill_ties(mask, flat == smallest_kept, k)
    return mask.reshape(scores.shape)


def _fill_ties(mask: Tensor, ties: Tensor, k: int) -> None:
    """Add to a flat mask the first ties, in order of index, until k are kept."""
    missing = k - int(mask.sum())
    mask[ties.nonzero().squeeze(1)[:missing]] = True


def topk_rows(scores: Tensor, k: int | Sequence[int] | Tensor, *, name: str = "scores") -> Tensor:
    """The k largest of each row, that is along the last axis.

    Args:
        scores: (..., n), at least 1-d, any real dtype. No NaN.
        k: survivors of every row, or one budget per row, of shape (...); 0 <= k <= n.
        name: what an error message calls the scores.
    Returns:
        bool mask of the shape of `scores`.
    Raises:
        NumericsError: a score is NaN.
        ShapeError: the scores are 0-d, or the budgets do not fit the rows.
        ConfigError: a budget is out of range.
    """
    if scores.dim() == 0:
        raise ShapeError(f"{name} have no rows: they are 0-d")
    scores = scores.detach()
    budgets = _budgets(k, scores, name)
    if scores.numel() == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if _fits_native(scores):
        return _native_rows(scores, scores.shape[-1], budgets, name)
    return topk_rows_reference(_comparable(scores, name), budgets)


def topk_rows_reference(scores: Tensor, budgets: Tensor) -> Tensor:
    """`topk_rows` in plain torch, on any device, for scores without NaN; one int64 budget per row."""
    rows, budgets = scores.reshape(-1, scores.shape[-1]), budgets.reshape(-1, 1)
    ordered = rows.sort(dim=1, descending=True).values
    smallest_kept = ordered.gather(1, (budgets - 1).clamp(min=0))
    above, ties = rows > smallest_kept, rows == smallest_kept
    missing = budgets - above.sum(1, keepdim=True)
    ties &= ties.cumsum(1) <= missing
    return ((above | ties) & (budgets > 0)).reshape(scores.shape)


def _fits_native(scores: Tensor) -> bool:
    """Counting floats in C++ is several times faster than torch's partial sort."""
    fits = scores.is_cpu and scores.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return fits and not torch.compiler.is_compiling() and native.extension() is not None


def _native_rows(scores: Tensor, columns: int, budgets: Tensor, name: str) -> Tensor:
    values = scores.float().contiguous()
    budgets = budgets.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool)
    rows = budgets.numel()
    if not native.extension().topk_rows(
        values.data_ptr(), mask.data_ptr(), rows, columns, budgets.data_ptr(), native.threads()
    ):
        raise _nan(scores, name)
    return mask


def topk_cols(scores: Tensor, k: int | Sequence[int] | Tensor, *, name: str = "scores") -> Tensor:
    """The k largest of each column of a matrix; as `topk_rows` of its transpose.

    Args:
        scores: (rows, columns).
        k: survivors of every column, or one budget per column.
        name: what an error message calls the scores.
    """
    if scores.dim() != 2:
        raise ShapeError(f"topk_cols needs a matrix, but the {name} have shape {tuple(scores.shape)}")
    return topk_rows(scores.t(), k, name=name).t().contiguous()


def _budgets(k: int | Sequence[int] | Tensor, scores: Tensor, name: str) -> Tensor:
    """k as one int64 per row, checked."""
    lead, n = scores.shape[:-1], scores.shape[-1]
    budgets = torch.as_tensor(k, device=scores.device)
    if budgets.numel() == 0:
        budgets = budgets.to(torch.int64)
    if budgets.is_floating_point() or budgets.is_complex() or budgets.dtype is torch.bool:
        raise ConfigError(f"budgets count {name}: they must be integers, got {budgets.dtype}")
    if budgets.dim() and budgets.shape != lead:
        raise ShapeError(
            f"{name} of shape {tuple(scores.shape)} need budgets of shape {tuple(lead)}, got {tuple(budgets.shape)}"
        )
    wrong = budgets[(budgets < 0) | (budgets > n)]
    if wrong.numel():
        raise ConfigError(f"cannot keep {int(wrong.flatten()[0])} of the {n} {name} of a row: need 0 <= k <= {n}")
    return budgets.to(torch.int64).expand(lead).reshape(-1)


def nm_mask(scores: Tensor, n: int, m: int, *, name: str = "scores") -> Tensor:
    """The n largest of each m neighbours along the last axis (N:M sparsity).

    Args:
        scores: (..., c) with c divisible by m, any real dtype. No NaN.
        n: survivors of a group, 0 <= n <= m.
        m: length of a group.
        name: what an error message calls the scores.
    Returns:
        bool mask of the shape of `scores`.
    Raises:
        NumericsError: a score is NaN.
        ShapeError: m does not divide the last axis.
        ConfigError: n or m is out of range.
    """
    if m < 1 or not 0 <= n <= m:
        raise ConfigError(f"{n}:{m} sparsity needs 0 <= n <= m and m >= 1")
    if scores.dim() == 0 or scores.shape[-1] % m:
        raise ShapeError(
            f"{n}:{m} sparsity needs a last axis divisible by {m}, but the {name} have shape {tuple(scores.shape)}"
        )
    mask, clean = _nm_mask(scores.detach(), n, m)
    if not torch.compiler.is_compiling() and not clean:
        raise _nan(scores, name)
    return mask


def nm_mask_reference(scores: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """`nm_mask` in plain torch: the mask, and whether no score is NaN (0-d bool)."""
    groups = scores.unflatten(-1, (scores.shape[-1] // m, m))
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device)
    mask.scatter_(-1, order[..., :n], True)
    return mask.reshape(scores.shape), ~torch.isnan(scores).any()


@torch.library.custom_op("gossamer::nm_mask", mutates_args=())
def _nm_mask(scores: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    kind = _NATIVE_KINDS.get(scores.dtype)
    usable = scores.device.type == "cpu" and kind and m <= _NATIVE_MOST_M
    extension = native.extension() if usable else None
    if extension is None:
        return nm_mask_reference(scores, n, m)
    scores = scores.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool)
    clean = extension.nm_mask(scores.data_ptr(), mask.data_ptr(), scores.numel() // m, n, m, kind, native.threads())
    return mask, torch.tensor(clean)


@_nm_mask.register_fake
def _(scores: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    return mask, torch.empty((), dtype=torch.bool, device=scores.device)


def _comparable(scores: Tensor, name: str) -> Tensor:
    """Scores of a dtype that every torch operator here sorts, checked for NaN."""
    scores = scores.detach()
    if scores.is_complex():
        raise ConfigError(f"{name} are complex, which have no order; take their absolute value")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if scores.dtype is torch.bool:
        scores = scores.to(torch.uint8)
    if scores.is_floating_point() and bool(torch.isnan(scores).any()):
        raise _nan(scores, name)
    return scores


def _nan(scores: Tensor, name: str) -> NumericsError:
    bad = torch.isnan(scores)
    first = tuple(bad.nonzero()[0].tolist())
    return NumericsError(
        f"{name} hold {int(bad.sum())} NaN of {scores.numel()}, the first at {first}; "
        "nothing can be ranked against NaN: look for the step where they appeared"
    )
