"""Transfer: a source model on a new task, before and after it forgot the source classes that do harm."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...metrics.classification import accuracy
from ...training.config import OptimConfig, TrainConfig
from ...training.task import Classification
from .descent import train
from .fisher import output_layer
from .masks import Job, Masks, resolve_masks
from .measure import outputs_of
from .split import as_batches, labels_of, shuffled

MODES = ("probe", "finetune")


@dataclass(frozen=True)
class Transferred:
    """A model on its new task; accuracy on the new test set in percent."""

    model: nn.Module
    accuracy: float


def transfer(
    model: nn.Module,
    data: Any,
    test: Any,
    *,
    mode: str = "probe",
    lr: float = 0.01,
    epochs: int = 10,
    batch_size: int = 256,
    output: str | None = None,
    masks: Masks | str | None = "zeros",
    seed: int = 0,
    device: str = "auto",
) -> Transferred:
    """Give a copy of the model a new output layer and train it on another task.

    Args:
        data, test: samples of the new task, as `as_batches` takes them; labels from 0.
        mode: "probe" trains the new layer alone (statistics of norms stay), "finetune" everything.
        output: name of the Linear layer that is replaced; by default the last. masks: as in `unlearn`; the new layer
            is dense.
    Raises:
        ConfigError: an unknown mode, or an output layer that is not Linear.
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    train_set, test_set = as_batches(data, "transfer"), as_batches(test, "test")
    name = output_layer(model, output)
    kept = {key: mask for key, mask in resolve_masks(model, masks).items() if key != f"{name}.weight"}
    made = copy.deepcopy(model)
    old = made.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise ConfigError(f"{name} is a {type(old).__name__}; a new task needs a Linear output layer")
    classes = 1 + int(max(labels_of(train_set).max(), labels_of(test_set).max()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(old.in_features, classes).to(old.weight)
    path, _, leaf = name.rpartition(".")
    setattr(made.get_submodule(path), leaf, head)
    if mode == "probe":
        made = _Probe(made, head)
    batches = shuffled(train_set, batch_size, seed)
    config = TrainConfig(
        steps=max(1, epochs * len(batches)),
        seed=seed,
        optim=OptimConfig(lr=lr, schedule="constant"),
        device=device,  # type: ignore[arg-type]  # checked there
    )
    train(Classification(made), batches, config, Job({} if mode == "probe" else kept, seed, device))
    inner = made.whole if isinstance(made, _Probe) else made
    return Transferred(inner.requires_grad_(True), 100 * accuracy(*outputs_of(inner, test_set, "test")))


class _Probe(nn.Module):
    """Trains one layer of a model that else stays as it is, in evaluation mode."""

    def __init__(self, whole: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.whole = whole.requires_grad_(False)
        head.requires_grad_(True)

    def train(self, mode: bool = True) -> _Probe:
        """Only the flag: statistics of norms are not updated."""
        super().train(False)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, ...) -> (n, classes)."""
        answer: torch.Tensor = self.whole(x)
        return answer
