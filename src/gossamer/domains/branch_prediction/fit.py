"""Sparse linear models: L1-regularised logistic regression and lasso, forward selection, refitting on a support."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, NumericsError, ShapeError, unknown
from ...maths.proximal import fista, soft_threshold

SMALLEST, FIRST, LARGEST = 1e-5, 0.01, 0.1  # of lambda, here and in online.py; from the paper's online training


@dataclass(frozen=True)
class Linear:
    """A linear model: the sign of x . weights + bias.

    Args:
        weights: (features,). penalty: the lambda it was fitted with.
        gap: largest violation of the optimality conditions.
    """

    weights: Tensor
    bias: float
    penalty: float
    gap: float = 0.0

    @property
    def support(self) -> tuple[int, ...]:
        """Indices of the non-zero weights."""
        return tuple(self.weights.nonzero().flatten().tolist())

    def score(self, x: Tensor) -> Tensor:
        """(n,) x . weights + bias."""
        support = list(self.support)
        return x[:, support].to(self.weights.dtype) @ self.weights[support] + self.bias


def _logistic(margin: Tensor, y: Tensor) -> Tensor:
    """Derivative of log(1 + exp(-y margin)) by the margin."""
    return -y * torch.sigmoid(-y * margin)


def _squared(margin: Tensor, y: Tensor) -> Tensor:
    """Derivative of (y - margin)^2 / 2."""
    return margin - y


# loss -> its derivative by the margin, and the largest second derivative
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "logistic": (_logistic, 0.25),
    "squared": (_squared, 1.0),
}


def fit_l1(
    x: Tensor,
    y: Tensor,
    penalty: float,
    *,
    loss: str = "logistic",
    start: Linear | None = None,
    tolerance: float = 1e-4,
    rounds: int = 50,
) -> Linear:
    """Minimise mean loss(x w + b, y) + penalty ||w||_1; the bias b is not penalised.

    FISTA on the features that are non-zero or violate the optimality conditions; more are added until none does.

    Args:
        x: (n, features) real. y: (n,), +1 or -1 for "logistic".
        loss: "logistic", or "squared" (half the square: lasso).
        start: a solution nearby, such as that of a larger penalty.
        tolerance: allowed violation of the conditions, as a share of the penalty.
    Raises:
        ConfigError: penalty not positive, unknown loss. ShapeError: x and y do not fit. NumericsError: NaN or infinity.
    """
    _check(x, y, penalty, loss)
    slope, curvature = LOSSES[loss]
    weights = torch.zeros(x.shape[1], dtype=x.dtype) if start is None else start.weights.clone()
    bias, gap = 0.0 if start is None else start.bias, float("inf")
    active = weights != 0
    for _ in range(rounds):
        weights, bias = _on_active(x, y, penalty, slope, curvature, weights, bias, active)
        gradient = x.T @ slope(_margin(x, weights, bias), y) / len(y)
        gap = float(_violation(gradient, weights, penalty).max()) if len(gradient) else 0.0
        beyond = (gradient.abs() > penalty * (1 + tolerance)) & ~active
        if not beyond.any():
            break
        active = (weights != 0) | beyond
    return Linear(weights, bias, penalty, gap)


def _check(x: Tensor, y: Tensor, penalty: float, loss: str) -> None:
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    if not penalty > 0:
        raise ConfigError(f"penalty must be positive, got {penalty}")
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise ShapeError(f"needs x (n, features) and y (n,) with n > 0, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise NumericsError("x or y holds NaN or infinity")


def _margin(x: Tensor, weights: Tensor, bias: float) -> Tensor:
    support = weights.nonzero().flatten()
    return x[:, support] @ weights[support] + bias


def _violation(gradient: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """How far each feature is from |gradient| <= penalty, with equality and opposite sign where the weight is not 0."""
    free = (gradient.abs() - penalty).clamp(min=0)
    return torch.where(weights == 0, free, (gradient + penalty * weights.sign()).abs())


def _on_active(
    x: Tensor,
    y: Tensor,
    penalty: float,
    slope: Callable[[Tensor, Tensor], Tensor],
    curvature: float,
    weights: Tensor,
    bias: float,
    active: Tensor,
) -> tuple[Tensor, float]:
    """The optimum over the active features and the bias, in double precision.

    The features are centred, which only moves the bias (it is not penalised) and takes out the direction in which
    features with a preferred outcome agree and that slows the descent.
    """
    chosen = active.nonzero().flatten()
    some, target = x[:, chosen].double(), y.double()
    mean, start = some.mean(0), weights[chosen].double()
    some = torch.cat([some - mean, torch.ones(len(y), 1, dtype=torch.double)], dim=1)
    levels = torch.full((len(chosen) + 1,), penalty, dtype=torch.double)
    levels[-1] = 0.0  # the bias
    lipschitz = curvature * float(torch.linalg.matrix_norm(some.T @ some / len(y), 2))
    found = fista(
        lambda v: some.T @ slope(some @ v, target) / len(target),
        lambda v, t: soft_threshold(v, t * levels),
        torch.cat([start, (bias + mean @ start).reshape(1)]),
        lipschitz,
        steps=3000,
        tolerance=1e-8,
    ).x
    out = torch.zeros_like(weights)
    out[chosen] = found[:-1].to(out.dtype)
    return out, float(found[-1] - mean @ found[:-1])


def penalty_path(x: Tensor, y: Tensor, max_nonzero: int = 50, refine: int = 2) -> list[Linear]:
    """Logistic models with at most `max_nonzero` weights, from few to many.

    Lambda starts at 0.1, is doubled where that leaves too many weights, and then halved, never below 1e-5, until there
    are too many; the last gap is then bisected `refine` times. (Online, the paper starts at 0.01 and also doubles;
    offline, the sparser models cost next to nothing and are candidates too.)

    Raises:
        ConfigError: max_nonzero < 1. As `fit_l1`.
    Source: section on online training (factor 2, bounds 1e-5 and 0.1, at most 50 weights).
    """
    if max_nonzero < 1:
        raise ConfigError(f"max_nonzero must be at least 1, got {max_nonzero}")
    found: dict[float, Linear] = {}

    def fits(penalty: float) -> bool:
        if penalty in found:
            return len(found[penalty].support) <= max_nonzero
        above = [p for p in found if p > penalty]
        found[penalty] = fit_l1(x, y, penalty, start=found[min(above)] if above else None)
        return len(found[penalty].support) <= max_nonzero

    penalty = LARGEST
    while not fits(penalty):  # ends, as no weight survives a penalty beyond the largest slope
        penalty *= 2
    while fits(penalty) and penalty / 2 >= SMALLEST:  # downward, every solution is a warm start for the next
        penalty /= 2
    low, high = penalty, 2 * penalty
    for _ in range(refine if len(found[low].support) > max_nonzero and high in found else 0):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    return [model for _, model in sorted(found.items(), reverse=True) if len(model.support) <= max_nonzero]


def refit(x: Tensor, y: Tensor, support: tuple[int, ...], ridge: float = 1e-4, steps: int = 50) -> Linear:
    """Logistic regression on a support alone, without the bias of the L1 penalty; Newton's method.

    Args:
        ridge: mean loss + ridge / 2 ||w||^2, so that data that can be separated still has an optimum.
    """
    chosen = list(support)
    some = torch.cat([x[:, chosen].double(), torch.ones(len(y), 1, dtype=torch.double)], dim=1)
    target, v = y.double(), torch.zeros(len(chosen) + 1, dtype=torch.double)
    damping = torch.full_like(v, ridge)
    for _ in range(steps):
        p = torch.sigmoid(-target * (some @ v))
        gradient = some.T @ (-target * p) / len(target) + damping * v
        curvature = (some.T * (p * (1 - p))) @ some / len(target) + torch.diag(damping)
        move = torch.linalg.solve(curvature, gradient)
        v = v - move * min(1.0, 4.0 / float(move.abs().max().clamp(min=1e-30)))  # far from the optimum: short steps
        if float(move.abs().max()) < 1e-8:
            break
    weights = torch.zeros(x.shape[1], dtype=torch.double)
    weights[chosen] = v[:-1]
    return Linear(weights, float(v[-1]), 0.0)


def greedy_path(x: Tensor, y: Tensor, max_nonzero: int = 50) -> list[Linear]:
    """Forward selection: always add the feature with the steepest slope, and refit; models of 1, 2, 3, 4, 6, ... terms.

    Raises:
        ConfigError: max_nonzero < 1.
    """
    if max_nonzero < 1:
        raise ConfigError(f"max_nonzero must be at least 1, got {max_nonzero}")
    kept: list[Linear] = []
    model = refit(x, y, ())
    for size in range(1, min(max_nonzero, x.shape[1]) + 1):
        slope = x.T @ F.sigmoid(-y * model.score(x).to(x.dtype)).mul(y)
        slope[list(model.support)] = 0
        model = refit(x, y, tuple(sorted({*model.support, int(slope.abs().argmax())})))
        if size <= 4 or size % 2 == 0 or size == max_nonzero:
            kept.append(model)
    return kept


METHODS: dict[str, Callable[[Tensor, Tensor, int], list[Linear]]] = {"l1": penalty_path, "greedy": greedy_path}
