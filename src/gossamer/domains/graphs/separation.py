"""How far apart the outputs of the classes are: entropic transport between point clouds, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON, STEPS = 1e-3, 10  # of WD-GLT
TINY = 1e-300


def sinkhorn_distance(x: Tensor, y: Tensor, epsilon: float = EPSILON, steps: int = STEPS) -> Tensor:
    """Transport cost of squared distances between two clouds of equal weights, after `steps` Sinkhorn iterations.

    Args:
        x: (n, k). y: (m, k). epsilon: of the entropy; small ones need more steps to meet both marginals.
    Returns:
        0-d; its gradient is that of the costs under the plan that was found.
    Source: Cuturi 2013.
    """
    cost = (x[:, None] - y[None]).square().sum(2)
    with torch.no_grad():
        # less the least of every row, then column: the same plan, and no sum of the kernel is zero
        shifted = cost.double() - cost.double().min(1, keepdim=True).values
        kernel = (-(shifted - shifted.min(0).values) / epsilon).exp()
        right = kernel.new_ones(len(y))
        for _ in range(steps):
            left = 1 / (len(x) * (kernel @ right)).clamp(min=TINY)
            right = 1 / (len(y) * (left @ kernel)).clamp(min=TINY)
        plan = (left[:, None] * kernel * right).to(cost)
    return (plan * cost).sum()


def class_distances(shares: Tensor) -> Tensor:
    """Sum over the predicted classes of the distance between the nodes of that class and all other nodes.

    Args:
        shares: (nodes, classes) probabilities. A class that all nodes or none have contributes 0.
    """
    predicted = shares.argmax(1)
    total = shares.new_zeros(())
    for label in predicted.unique():
        inside = predicted == label
        if not bool(inside.all()):
            total = total + sinkhorn_distance(shares[inside], shares[~inside])
    return total
