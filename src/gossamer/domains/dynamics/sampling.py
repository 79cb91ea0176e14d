"""The planners that mixed-integer planning is compared with: MPPI, the cross-entropy method, gradient descent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from .folded import Array
from .planner import finish
from .problem import OUTSIDE, Plan, Problem


@dataclass
class _Sampler:
    """Restarts until `seconds` are over (at least once) and keeps the best plan; seeded.

    Args:
        samples, iterations: of one round, 500 and 6 in the specification.
        seconds: of one solve, to give a sampler the time that another planner took; 0 is one round.
    """

    problem: Problem
    samples: int = 500
    iterations: int = 6
    seed: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 2 or self.iterations < 1:
            raise ConfigError(
                f"a sampler needs samples >= 2 and iterations >= 1, got {self.samples} and {self.iterations}"
            )
        self._generator = torch.Generator().manual_seed(self.seed)

    def solve(self, x0: Sequence[float] | Array, warm: Array | None = None) -> Plan:
        """The best plan found from x0; `warm` (T, m) is where the first round begins."""
        began, start = time.perf_counter(), self.problem.start(x0)
        low, high = map(torch.from_numpy, self.problem.u_box)
        shape = (self.problem.horizon, self.problem.dynamics.actions)
        mean = torch.zeros(shape, dtype=torch.float64) if warm is None else torch.as_tensor(warm)
        best: tuple[float, Tensor] | None = None
        while best is None or time.perf_counter() - began < self.seconds:
            cost, actions = self._round(start, mean.clamp(low, high), low, high)
            if best is None or cost < best[0]:
                best = cost, actions
            mean = low + (high - low) * torch.rand(shape, generator=self._generator, dtype=torch.float64)
        return finish(self.problem, start, best[1].detach().numpy(), began, "sampled")

    def _price(self, x0: Array, actions: Tensor) -> Tensor:
        cost, outside, _ = self.problem.evaluate(x0, actions)
        return cost + OUTSIDE * outside

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def _round(self, x0: Array, mean: Tensor, low: Tensor, high: Tensor) -> tuple[float, Tensor]:
        raise NotImplementedError


@dataclass
class MPPI(_Sampler):
    """Model-predictive path integral control: the mean moves to the softmax(-cost / temperature) average.

    Args:
        noise: deviation in halves of the action box (0.6 is the specification's 0.15 of a box of 0.25).
        temperature: 0.05.
    Source: Williams et al. 2017, algorithm 2, without its control cost.
    """

    noise: float = 0.6
    temperature: float = 0.05

    @torch.no_grad()
    def _round(self, x0: Array, mean: Tensor, low: Tensor, high: Tensor) -> tuple[float, Tensor]:
        best, plan = np.inf, mean
        for _ in range(self.iterations):
            drawn = mean + self.noise * (high - low) / 2 * self._noise(self.samples, *mean.shape)
            drawn[0] = mean
            drawn = drawn.clamp(low, high)
            price = self._price(x0, drawn)
            weight = (-(price - price.min()) / self.temperature).softmax(0)
            mean = (weight[:, None, None] * drawn).sum(0)
            if price.min() < best:
                best, plan = float(price.min()), drawn[price.argmin()]
        return best, plan


@dataclass
class CEM(_Sampler):
    """The cross-entropy method: mean and deviation of the best tenth.

    Args:
        noise: first deviation in halves of the action box. elite: fraction kept, 0.1.
    """

    noise: float = 0.6
    elite: float = 0.1

    @torch.no_grad()
    def _round(self, x0: Array, mean: Tensor, low: Tensor, high: Tensor) -> tuple[float, Tensor]:
        best, plan = np.inf, mean
        deviation = self.noise * (high - low) / 2 * torch.ones_like(mean)
        for _ in range(self.iterations):
            drawn = (mean + deviation * self._noise(self.samples, *mean.shape)).clamp(low, high)
            price = self._price(x0, drawn)
            chosen = price.argsort()[: max(2, int(self.elite * self.samples))]
            mean, deviation = drawn[chosen].mean(0), drawn[chosen].std(0) + 1e-4
            if price[chosen[0]] < best:
                best, plan = float(price[chosen[0]]), drawn[chosen[0]]
        return best, plan


@dataclass
class GradientPlanner(_Sampler):
    """Adam through the network on tanh-bounded actions; `samples` restarts at once, `iterations` steps.

    Args:
        lr: of Adam on the arguments of tanh.
    """

    samples: int = 16
    iterations: int = 100
    lr: float = 0.1

    def _round(self, x0: Array, mean: Tensor, low: Tensor, high: Tensor) -> tuple[float, Tensor]:
        middle, half = (low + high) / 2, ((high - low) / 2).clamp(min=1e-12)
        raw = ((mean - middle) / half).clamp(-0.99, 0.99).atanh() + 0.5 * self._noise(self.samples, *mean.shape)
        raw.requires_grad_()
        optimiser = torch.optim.Adam([raw], self.lr)
        best, plan = np.inf, mean
        for _ in range(self.iterations):
            price = self._price(x0, middle + half * raw.tanh())
            if float(price.detach().min()) < best:
                best, plan = float(price.detach().min()), (middle + half * raw.tanh())[price.argmin()].detach()
            (raw.grad,) = torch.autograd.grad(price.sum(), raw)
            optimiser.step()
        return best, plan


PLANNERS: dict[str, type[_Sampler]] = {"mppi": MPPI, "cem": CEM, "gradient": GradientPlanner}
