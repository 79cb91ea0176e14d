"""What a sub-network looks like before any training: scores by one pass over some data, as search objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..errors import ConfigError, unknown
from .evaluator import Goal
from .masks import Masks, MaskSpace, masked
from .space import Architecture

Batch = tuple[Tensor, ...]
InitScore = Callable[[nn.Module, dict[str, Tensor], Batch], float]


def _loss(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    return F.cross_entropy(functional_call(model, weights, (batch[0],)), batch[1])


@torch.no_grad()
def loss(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> float:
    """Cross entropy in nats; lower is better (the paper's score)."""
    return float(_loss(model, weights, batch))


@torch.no_grad()
def accuracy(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> float:
    """Fraction of correct labels."""
    return float((functional_call(model, weights, (batch[0],)).argmax(1) == batch[1]).double().mean())


def _gradients(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    found = torch.autograd.grad(_loss(model, leaves, batch), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in pairs}


def gradient_norm(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> float:
    """Norm of the gradient with respect to the surviving entries; higher is better."""
    grads = _gradients(model, weights, batch)
    return float(torch.stack([(g * (weights[n] != 0)).double().square().sum() for n, g in grads.items()]).sum().sqrt())


def snip(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> float:
    """Sum of |w dL/dw| (Lee et al. 2019); higher is better."""
    grads = _gradients(model, weights, batch)
    return float(sum((g * weights[name]).abs().double().sum() for name, g in grads.items()))


def ntk_condition(model: nn.Module, weights: dict[str, Tensor], batch: Batch, samples: int = 16) -> float:
    """Condition number of the neural tangent kernel of the summed outputs on a few samples; lower is better.

    Source: the NTK score of training-free architecture search (Chen et al. 2021), on `samples` inputs.
    """
    rows = []
    for x in batch[0][:samples]:
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        out = functional_call(model, leaves, (x[None],)).sum()
        grads = torch.autograd.grad(out, list(leaves.values()), allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in grads if g is not None]).double())
    jacobian = torch.stack(rows)
    values = torch.linalg.eigvalsh(jacobian @ jacobian.T)
    return float(values[-1] / values[0].clamp_min(1e-12 * values[-1].clamp_min(1e-300)))


SCORES: dict[str, tuple[InitScore, Goal]] = {
    "loss": (loss, "min"),
    "accuracy": (accuracy, "max"),
    "gradient_norm": (gradient_norm, "max"),
    "snip": (snip, "max"),
    "ntk_condition": (ntk_condition, "min"),
}


class AtInit:
    """Scores architectures of a mask space on a parent as it stands; for `Evaluator` and `random_search`.

    Args:
        model: the parent with the weights that sub-networks inherit; it is not changed. Evaluation mode is used, so
            that no statistic moves.
        space: the masks. batches: data to score on, each (inputs, labels); scores are means weighted by samples.
        name: of SCORES. fan_in: as in `apply_masks`.
    Raises:
        ConfigError: an unknown score, or no batch.
    """

    def __init__(
        self, model: nn.Module, space: MaskSpace, batches: Sequence[Batch], name: str = "loss", fan_in: str = "dense"
    ) -> None:
        if name not in SCORES:
            raise unknown("score", name, SCORES)
        if not batches:
            raise ConfigError("a score at initialisation needs at least one batch")
        self.score, self.goal = SCORES[name]
        self.model, self.space, self.batches, self.fan_in = model, space, list(batches), fan_in

    def __call__(self, architecture: Architecture) -> float:
        """The score of one sub-network; every batch is passed once."""
        weights = self.weights(self.space.masks(architecture))
        training = self.model.training
        self.model.eval()
        try:
            found = [(len(batch[0]), self.score(self.model, weights, batch)) for batch in self.batches]
        finally:
            self.model.train(training)
        return sum(n * value for n, value in found) / sum(n for n, _ in found)

    def weights(self, masks: Masks) -> dict[str, Tensor]:
        """The parent's parameters under masks, as new tensors."""
        parameters = dict(self.model.named_parameters())
        return {
            name: masked(p, masks[name], self.fan_in) if name in masks else p.detach() for name, p in parameters.items()
        }
