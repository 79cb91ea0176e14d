"""Influence unlearning: one second-order step that undoes what the forget set did to the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from ...data.dataset import Batches
from ...errors import ConfigError, NumericsError, unknown
from .fisher import first_samples
from .masks import Job, keeping
from .samplewise import LossOf, block_size, evaluating, flat, sample_gradients, split_vector, trainable
from .split import ForgetSplit, plain

CURVATURES = ("woodfisher", "released", "hessian")
_LARGEST_HESSIAN = 5000  # parameters of an exact Hessian
_KEPT = 1 << 28  # entries of all samples' gradients that stay in memory: 1 GiB in float32
Rows = Callable[[int], Tensor]  # number of a block -> gradients (n, d)


def gradient_sum(model: nn.Module, part: Batches, loss: LossOf = F.cross_entropy) -> Tensor:
    """Sum of the gradients of all samples, (d,); the model in evaluation mode, no augmentation."""
    parameters = trainable(model)
    device = next(iter(parameters.values())).device
    total = torch.zeros_like(flat(parameters))
    with evaluating(model):
        for x, y in plain(part):
            mean = loss(model(x.to(device)), y.to(device))
            found = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
            pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), found, strict=True)]
            total += len(x) * torch.cat([piece.reshape(-1) for piece in pieces])
    return total.detach()


def woodfisher(blocks: int, rows: Rows, vector: Tensor, damping: float) -> Tensor:
    """(damping I + 1/n sum g g^T)^-1 vector over the n rows g of all blocks, (d,); exact.

    One solve of size n in place of n rank-one updates (Woodbury); blocks are asked for again rather than kept, so
    memory holds two of them. Source: Singh & Alistarh 2020, equation 6, whose recursion gives the same.
    """
    counts, products, gram = [], [], {}
    for i in range(blocks):
        first = rows(i)
        counts.append(len(first))
        products.append((first @ vector).double())
        for j in range(i + 1):
            gram[i, j] = (first @ (first if j == i else rows(j)).T).double()
    full = torch.cat(
        [torch.cat([gram[i, j] if j <= i else gram[j, i].T for j in range(blocks)], 1) for i in range(blocks)]
    )
    n = sum(counts)
    weights = torch.linalg.solve(full + n * damping * torch.eye(n).to(full), torch.cat(products))
    pieces = weights.to(vector.dtype).split(counts)
    pulled = sum((rows(i).T @ piece for i, piece in enumerate(pieces)), torch.zeros_like(vector))
    return (vector - pulled) / damping


def released_woodfisher(rows: Sequence[Tensor], vector: Tensor) -> Tensor:
    """The recursion of the authors' code, (d,): o = g_1; then k -= (k.g)/(n+o.g) o, o -= (o.g)/(n+o.g) o.

    It is not the inverse that its name promises: o stays parallel to the first gradient, so the result differs from
    `vector` in that one direction only. Kept to reproduce the published figures.
    """
    n = len(rows)
    k, o = vector.clone(), rows[0].clone()
    for g in rows[1:]:
        scale = n + o @ g
        k, o = k - (k @ g) / scale * o, o - (o @ g) / scale * o
    return k


def mean_hessian(model: nn.Module, part: Batches, loss: LossOf = F.cross_entropy) -> Tensor:
    """The exact Hessian (d, d) of the mean loss. Raises ConfigError above 5000 parameters."""
    parameters = trainable(model)
    start = flat(parameters).detach()
    if len(start) > _LARGEST_HESSIAN:
        raise ConfigError(f"an exact Hessian of {len(start)} parameters is too large; use curvature='woodfisher'")
    buffers = dict(model.named_buffers())
    total = torch.zeros(len(start), len(start)).to(start)
    with evaluating(model):
        for x, y in plain(part, 256):
            at = _loss_at(model, parameters, buffers, (x.to(start.device), y.to(start.device)), loss)
            total += len(x) * jacrev(grad(at))(start)  # reverse twice: forward mode compiles scripts
    return total / part.samples


def _loss_at(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    loss: LossOf,
) -> Callable[[Tensor], Tensor]:
    def at(vector: Tensor) -> Tensor:
        return loss(functional_call(model, (split_vector(vector, parameters), buffers), (batch[0],)), batch[1])

    return at


@dataclass(frozen=True)
class Influence:
    """w <- w + alpha H^-1 (1/N) (sum_forget g - (n_f / n_r) sum_retain g)   (IU; Koh & Liang 2017, Izzo et al. 2021).

    At a minimum of the (decayed) training loss and with alpha = 1 this is a Newton step on the retain set: exact for a
    quadratic loss, correct to first order in the share that is forgotten otherwise. Masked weights stay 0.

    Args:
        alpha: length of the step; the authors search 1 to 20 with the released curvature.
        curvature: "woodfisher": damped empirical Fisher of `samples` retained samples, inverted exactly; "released":
            the recursion of the authors' code, close to the identity; "hessian": exact, for small models.
        damping: added to the curvature's diagonal; for "hessian" the weight decay of the training.
        loss: (outputs, targets) -> mean loss.
    Raises:
        ConfigError: alpha <= 0, damping out of range, frozen parameters, a model too large. NumericsError: a singular
            Hessian, or a step that is not finite.
    """

    name: ClassVar[str] = "iu"
    alpha: float = 1.0
    curvature: str = "woodfisher"
    samples: int = 1000
    damping: float = 0.01
    loss: LossOf = field(default=F.cross_entropy, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha, the length of the step, must be positive, got {self.alpha}")
        if self.curvature not in CURVATURES:
            raise unknown("curvature", self.curvature, CURVATURES)
        if self.samples < 1 or not self.damping >= 0 or (self.curvature == "woodfisher" and not self.damping > 0):
            raise ConfigError(f"need samples >= 1 and a positive damping, got {self.samples} and {self.damping}")

    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model, changed in place."""
        step = self.alpha * self.step(model, split, job.seed)
        if not bool(torch.isfinite(step).all()):
            raise NumericsError(f"the influence step is not finite; raise damping (it is {self.damping:g})")
        with keeping(model, job.masks), torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, change in split_vector(step, parameters).items():
                parameters[name].add_(change)
        return model

    def step(self, model: nn.Module, split: ForgetSplit, seed: int = 0) -> Tensor:
        """The change of all parameters for alpha = 1, (d,)."""
        forget, retain = split.forget.samples, split.retain.samples
        gradient = gradient_sum(model, split.forget, self.loss) - forget / retain * gradient_sum(
            model, split.retain, self.loss
        )
        vector = gradient / (forget + retain)
        if self.curvature == "hessian":
            return self._by_hessian(model, split, vector)
        with evaluating(model):
            blocks, rows = self._rows(model, split.retain, seed)
            if self.curvature == "released":
                return released_woodfisher(torch.cat([rows(i) for i in range(blocks)]).unbind(), vector)
            return woodfisher(blocks, rows, vector, self.damping)

    def _by_hessian(self, model: nn.Module, split: ForgetSplit, vector: Tensor) -> Tensor:
        curved = mean_hessian(model, split.retain, self.loss)
        curved.diagonal().add_(self.damping)
        try:
            return torch.linalg.solve(curved, vector)
        except RuntimeError as error:
            raise NumericsError(f"the Hessian is singular: give damping > 0 (it is {self.damping:g})") from error

    def _rows(self, model: nn.Module, part: Batches, seed: int) -> tuple[int, Rows]:
        """Gradients of single samples by block, kept in memory where they fit."""
        parameters = trainable(model)
        device = next(iter(parameters.values())).device
        drawn = first_samples(part, self.samples, seed)
        entries = sum(len(x) for x, _ in drawn) * sum(p.numel() for p in parameters.values())
        small = block_size(parameters) if entries <= _KEPT else block_size(parameters, _KEPT)  # fewer pairs of blocks
        pairs = [pair for x, y in drawn for pair in zip(x.split(small), y.split(small), strict=True)]

        def compute(number: int) -> Tensor:
            x, y = pairs[number]
            return sample_gradients(model, x.to(device), y.to(device), self.loss)

        if entries > _KEPT:
            return len(pairs), compute
        kept = [compute(number) for number in range(len(pairs))]
        return len(kept), kept.__getitem__
