"""The gradient of the validation loss with respect to an architecture, through one step of the weights or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .scored_layers import shares
from .stages import Batch, Loss


def alphas_of(model: nn.Module) -> list[nn.Parameter]:
    """The architecture's parameters. Raises ConfigError where there are none."""
    found = list(getattr(model, "alphas", ()))
    if not found:
        raise ConfigError(f"{type(model).__name__} has no alphas, so there is no architecture to search")
    return found


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    apart = {id(p) for p in alphas_of(model)} | {id(share.score) for _, _, share in shares(model)}
    return [p for p in model.parameters() if id(p) not in apart]


@contextmanager
def _moved(weights: Sequence[nn.Parameter], by: Sequence[Tensor], scale: float) -> Iterator[None]:
    """Inside, w + scale * by."""
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, step in zip(weights, by, strict=True):
            w.add_(step, alpha=scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, old in zip(weights, kept, strict=True):
                w.copy_(old)


def gradients(loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(wanted), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def arch_gradient(
    model: nn.Module,
    loss: Loss,
    train: Batch,
    val: Batch,
    *,
    xi: float,
    optimizer: torch.optim.Optimizer | None = None,
    decay: float = 0.0,
) -> list[Tensor]:
    """Gradient of the validation loss with respect to the alphas, through one training step of the weights.

    At w' = w - xi (momentum + dL_train/dw + decay w) the second-order term is a finite difference with
    eps = 0.01 / ||dL_val/dw'||: d_alpha L_val - xi (d_alpha L_train(w+) - d_alpha L_train(w-)) / (2 eps).

    Args:
        xi: step of the weights; 0 is the first order, and the training batch is then not looked at.
        optimizer: of the weights, for its momentum. decay: its weight decay.
    Source: Liu et al. 2019 (DARTS), eq. 7 and 8, with the masks of the present stage in every pass.
    """
    alphas = alphas_of(model)
    weights = [w for w in weights_of(model) if w.requires_grad]
    if xi == 0 or not weights:
        return gradients(loss(model, val), alphas)
    step = [
        _momentum(optimizer, w) + g + decay * w.detach()
        for w, g in zip(weights, gradients(loss(model, train), weights), strict=True)
    ]
    with _moved(weights, step, -xi):
        found = gradients(loss(model, val), [*alphas, *weights])
    outer, v = found[: len(alphas)], found[len(alphas) :]
    norm = float(torch.stack([g.double().square().sum() for g in v]).sum().sqrt())
    if norm == 0:
        return outer
    eps = 0.01 / norm
    with _moved(weights, v, eps):
        plus = gradients(loss(model, train), alphas)
    with _moved(weights, v, -eps):
        minus = gradients(loss(model, train), alphas)
    return [g - xi * (p - m) / (2 * eps) for g, p, m in zip(outer, plus, minus, strict=True)]


def _momentum(optimizer: torch.optim.Optimizer | None, weight: nn.Parameter) -> Tensor | float:
    """Momentum times the buffer, where the optimiser has one."""
    if optimizer is None:
        return 0.0
    buffer = optimizer.state.get(weight, {}).get("momentum_buffer")
    return 0.0 if buffer is None else float(optimizer.param_groups[0]["momentum"]) * buffer
