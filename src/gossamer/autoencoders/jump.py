"""JumpReLU and its step with pseudo-derivatives (Rajamanoharan et al. 2024b, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _rectangle(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((z - threshold).abs() < bandwidth / 2).to(z)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        return None, (-_rectangle(z, threshold, ctx.bandwidth) / ctx.bandwidth * grad).sum(0), None


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        toward = -threshold / ctx.bandwidth * _rectangle(z, threshold, ctx.bandwidth) * grad
        return (z > threshold) * grad, toward.sum(0), None


def step(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where z (B, F) exceeds threshold (F,). The gradient to the threshold is -(1/eps) rect((z - threshold)/eps)."""
    out: Tensor = _Step.apply(z, threshold, bandwidth)
    return out


def jump_relu(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """z where it exceeds its threshold, else 0. The gradient to the threshold is -(threshold/eps) rect(...)."""
    out: Tensor = _JumpReLU.apply(z, threshold, bandwidth)
    return out
