"""Back doors: poison some training samples with a trigger, and see whether forgetting them closes the door."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...data.dataset import Batches, generator
from ...errors import ConfigError, DataError, ShapeError
from .measure import outputs_of


@dataclass(frozen=True)
class Trigger:
    """A square patch in the lower right corner (the paper's: 4x4, white).

    Args:
        size: side in pixels. value: of the pixels. target: class that the patch is to cause.
    """

    size: int = 4
    value: float = 1.0
    target: int = 0

    def stamp(self, images: Tensor) -> Tensor:
        """A copy of the images (n, channels, h, w) with the patch. Raises ShapeError where it does not fit."""
        if images.ndim != 4 or min(images.shape[-2:]) < self.size or self.size < 1:
            raise ShapeError(f"a {self.size}x{self.size} trigger needs images (n, c, h, w), got {tuple(images.shape)}")
        stamped = images.clone()
        stamped[..., -self.size :, -self.size :] = self.value
        return stamped


def poison(
    images: Tensor, labels: Tensor, trigger: Trigger, share: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Stamp a share of the samples of other classes and label them as the trigger's target.

    Returns:
        images, labels, and the indices of the poisoned samples, which are the forget set of a repair.
    Raises:
        ConfigError: a share outside (0, 1). DataError: every sample is of the target class.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share of poisoned samples must lie strictly between 0 and 1, got {share}")
    others = (labels != trigger.target).nonzero()[:, 0]
    if not len(others):
        raise DataError(f"every sample is of the target class {trigger.target}")
    count = min(len(others), max(1, round(share * len(labels))))
    chosen = others[torch.randperm(len(others), generator=generator(seed, 9))[:count]].sort().values
    images, labels = images.clone(), labels.clone()
    images[chosen] = trigger.stamp(images[chosen])
    labels[chosen] = trigger.target
    return images, labels, chosen


def attack_success(model: nn.Module, images: Tensor, labels: Tensor, trigger: Trigger) -> float:
    """Percentage of clean test samples of other classes that the stamped patch turns into the target class."""
    others = labels != trigger.target
    if not bool(others.any()):
        raise DataError(f"every test sample is of the target class {trigger.target}")
    logits, _ = outputs_of(model, Batches([trigger.stamp(images[others]), labels[others]], 256), "stamped test")
    return 100 * float((logits.argmax(1) == trigger.target).double().mean())
