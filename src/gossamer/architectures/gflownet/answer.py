"""What a trained sampler does with all objects of an enumerable problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .balance import Flow
from .network import GFlowNet
from .tasks import Task
from .train import Training

Array = NDArray[Any]


@dataclass(frozen=True)
class Answer:
    """What a trained sampler does with all objects.

    Args:
        objects: (m, width). mass: (m,) exact probabilities. scores: (m, k). best: (m,) bool. curve: steps and losses.
    """

    objects: Array
    mass: Array
    scores: Array
    best: Array
    curve: tuple[list[float], list[float]]

    def figures(self) -> dict[str, float]:
        """Mass on the best objects, share of them that get a tenth of a fair share, entropy over them relative to the
        largest, and their number as a share of all objects (what chance would give)."""
        on = self.mass[self.best]
        share = on / max(float(on.sum()), 1e-300)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum() / max(math.log(len(on)), 1e-12)
        return {
            "mass": float(on.sum()),
            "covered": float((on >= 0.1 / len(on)).mean()),
            "entropy": float(entropy) if len(on) > 1 else 0.0,
            "share": len(on) / len(self.mass),
        }

    def likeliest(self, count: int) -> list[tuple[Tensor, float]]:
        """The objects that come up most often, with their mass."""
        order = np.argsort(-self.mass, kind="stable")[:count]
        return [(torch.from_numpy(self.objects[i]), float(self.mass[i])) for i in order]

    def grid(self, side: int) -> Array:
        """The mass of a square grid, (side, side)."""
        return self._on_grid(self.mass, side)

    def score_grid(self, side: int) -> Array:
        """The first objective on a square grid."""
        return self._on_grid(self.scores[:, 0], side)

    def _on_grid(self, values: Array, side: int) -> Array:
        out = np.zeros((side, side))
        out[self.objects[:, 0], self.objects[:, 1]] = values
        return out


def solve(posed: Task, flow: Flow, training: Training | None = None) -> Answer:
    """Train a tabular sampler on a problem and enumerate what it does."""
    losses: list[float] = []
    net = GFlowNet(posed.env, flow=flow)
    net.fit(posed.oracle, training or posed.training, lambda step, value: losses.append(value))
    objects, mass = net.distribution()
    scores = posed.oracle(objects).double()
    scores = scores[:, None] if scores.ndim == 1 else scores
    means = [sum(losses[i : i + 10]) / len(losses[i : i + 10]) for i in range(0, len(losses), 10)]
    curve = [float(10 * i) for i in range(len(means))], means
    return Answer(objects.numpy(), mass.numpy(), scores.numpy(), posed.best(scores).numpy(), curve)
