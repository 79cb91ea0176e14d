"""One-step adversarial inputs and the accuracy that is left on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ConfigError, NumericsError
from gossamer.metrics.classification import accuracy


def fgsm(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Inputs moved by `eps` along the sign of the loss gradient: x + eps * sign(d CE / d x).

    The model is used in the mode it is in and its parameters receive no gradient.

    Args:
        x: (n, ...) floating inputs. labels: (n,). eps: step in the unit of `x`, >= 0 (8/255 of the pixel
            range on CIFAR). low, high: valid range of inputs, clipped to where given.
    Source: Goodfellow, Shlens and Szegedy 2015.
    """
    if eps < 0:
        raise ConfigError(f"eps must not be negative, got {eps}")
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), labels, reduction="sum"), point)
    if not torch.isfinite(gradient).all():
        raise NumericsError("the gradient at the inputs holds NaN or infinity")
    moved = x.detach() + eps * gradient.sign()
    return moved if low is None and high is None else moved.clamp(low, high)


def fgsm_accuracy(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    low: float | None = None,
    high: float | None = None,
) -> float:
    """Accuracy in evaluation mode on the inputs that `fgsm` returns; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        attacked = fgsm(model, x, labels, eps, low, high)
        with torch.no_grad():
            return accuracy(model(attacked), labels)
    finally:
        model.train(training)
