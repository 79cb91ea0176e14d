"""Tasks: a model with what it is trained for. A task knows its loss, its optimiser and its measures, and no loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from gossamer.errors import DataError
from gossamer.training.config import OptimConfig
from gossamer.training.losses import cross_entropy, distillation
from gossamer.training.optim import make_optimizer

Batch = tuple[Tensor, ...]


class Task:
    """Base of the tasks. A task of your own overrides `loss` and `sums`; `make_optimizer` where groups differ.

    Attributes:
        model: the module that is trained.
        score: the measure by which checkpoints are compared. larger: whether more of it is better.
        masks: parameter name -> bool mask of the last training, once that has ended.
    """

    score = "loss"
    larger = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.masks: dict[str, Tensor] = {}

    def make_optimizer(self, config: OptimConfig) -> Optimizer:
        """The optimiser over all trainable parameters."""
        return make_optimizer([p for p in self.model.parameters() if p.requires_grad], config)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar that a step lowers: a mean over the samples of `batch`, so that pieces of a batch add up.

        `model` is the task's model, possibly wrapped (data parallel).
        """
        raise TypeError(f"{type(self).__name__} does not define loss(model, batch)")

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
        """Sums of the measures over a batch, and the number of items that they are sums over."""
        items = len(batch[0])
        return {"loss": self.loss(model, batch) * items}, items

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Add measures that follow from the means."""
        return means

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], device: torch.device | str | None = None) -> dict[str, float]:
        """The measures over all batches, the model in evaluation mode (and back again after).

        Raises:
            DataError: there is no batch.
        """
        if device is None:
            device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        totals: dict[str, Tensor] = {}
        count = 0
        try:
            for batch in batches:
                sums, items = self.sums(self.model, tuple(tensor.to(device) for tensor in batch))
                for name, value in sums.items():
                    totals[name] = totals.get(name, 0) + value.double()
                count += items
        finally:
            for module, mode in modes:
                module.training = mode
        if not count:
            raise DataError("there is nothing to evaluate on: the data set is empty")
        return self.finish({name: float(total) / count for name, total in totals.items()})


class Classification(Task):
    """Batches (inputs, labels); cross entropy, by default without smoothing.

    Args:
        smoothing: of the labels, while training. teacher: a model whose outputs are imitated, with the weight
            `imitate` in [0, 1] against the labels, at `temperature` (Hinton et al. 2015).
    """

    score, larger = "accuracy", True

    def __init__(
        self,
        model: nn.Module,
        smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        imitate: float = 0.5,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(model)
        self.smoothing, self.imitate, self.temperature = smoothing, imitate, temperature
        self.teacher = teacher.eval().requires_grad_(False) if teacher is not None else None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch
        logits = model(inputs)
        own = cross_entropy(logits, labels, self.smoothing)
        if self.teacher is None:
            return own
        taught = distillation(logits, self.teacher.to(inputs.device)(inputs), self.temperature)
        return (1 - self.imitate) * own + self.imitate * taught

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
        inputs, labels = batch
        logits = model(inputs)
        right = (logits.argmax(dim=1) == labels).sum()
        return {"loss": F.cross_entropy(logits, labels, reduction="sum"), "accuracy": right}, len(labels)


class Regression(Task):
    """Batches (inputs, targets) with targets of the output's shape; mean squared error."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(model(inputs), targets)

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
        inputs, targets = batch
        error = (model(inputs) - targets).flatten(1)
        return {"loss": error.square().mean(1).sum(), "mae": error.abs().mean(1).sum()}, len(inputs)


class Reconstruction(Task):
    """Batches (inputs, ...): the model gives its input back; mean squared error, and the PSNR for values in [0, 1]."""

    score, larger = "psnr", True

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[0])

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        return means | {"psnr": -10 * math.log10(max(means["loss"], 1e-20))}


class LanguageModelling(Task):
    """Batches (tokens, next tokens), both (batch, length) int64; the model gives logits (batch, length, vocabulary).

    Targets of -100 count neither in the loss nor in the perplexity.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens, following = batch
        return cross_entropy(model(tokens), following)

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
        tokens, following = batch
        logits = model(tokens).flatten(0, 1)
        total = F.cross_entropy(logits, following.flatten(), reduction="sum")
        return {"loss": total}, int((following != -100).sum())

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        return means | {"perplexity": math.exp(min(means["loss"], 700.0))}
