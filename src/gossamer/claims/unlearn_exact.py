"""Influence unlearning against leaving out, where retraining is exact: logistic regression in double precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.data.dataset import Batches, generator
from gossamer.reuse.unlearning import ForgetSplit, Influence
from gossamer.reuse.unlearning.influence import gradient_sum, mean_hessian
from gossamer.reuse.unlearning.samplewise import flat

SAMPLES, CLASSES, FEATURES = 400, 3, 6
DECAY = 0.02


def leave_out_errors(counts: tuple[int, ...], seed: int, mutant: str | None = None) -> list[float]:
    """Error of the influence step as a share of the true change, for forget sets of the first `counts` samples.

    Args:
        mutant: "identity_curvature": the Hessian is left out.
    """
    source = generator(seed, 10)
    y = torch.arange(SAMPLES) % CLASSES
    centres = torch.randn(CLASSES, FEATURES, generator=source, dtype=torch.float64)
    x = centres[y] + torch.randn(SAMPLES, FEATURES, generator=source, dtype=torch.float64)
    model = logistic(x, y, DECAY)
    start = _vector(model)
    errors = []
    for count in counts:
        wanted = _vector(logistic(x[count:], y[count:], DECAY)) - start
        step = _influence(model, ForgetSplit.by_index((x, y), range(count)), DECAY, mutant)
        errors.append(float((step - wanted).norm() / wanted.norm()))
    return errors


def logistic(x: Tensor, y: Tensor, decay: float) -> nn.Module:
    """The minimum of mean cross entropy + decay / 2 |w|^2, by Newton's method in double precision."""
    model = nn.Linear(x.shape[1], int(y.max()) + 1).double().requires_grad_(True)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    batches = Batches([x, y], 256)
    for _ in range(40):
        w = _vector(model)
        curved = mean_hessian(model, batches)
        curved.diagonal().add_(decay)
        slope = gradient_sum(model, batches) / len(y) + decay * w
        nn.utils.vector_to_parameters(w - torch.linalg.solve(curved, slope), model.parameters())
    return model


def _vector(model: nn.Module) -> Tensor:
    return flat(dict(model.named_parameters())).detach()


def _influence(model: nn.Module, split: ForgetSplit, decay: float, mutant: str | None) -> Tensor:
    if mutant == "identity_curvature":
        forget, retain = split.forget.samples, split.retain.samples
        both = gradient_sum(model, split.forget) - forget / retain * gradient_sum(model, split.retain)
        return both / (forget + retain)
    return Influence(curvature="hessian", damping=decay).step(model, split)
