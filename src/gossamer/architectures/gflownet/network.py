"""The object that most people want: environment, policy and loss together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import unknown
from .balance import Flow
from .envs import Env, check_env
from .exact import exact_distribution
from .memory import Oracle
from .policies import Policy, Tabular, _Policy
from .rollout import sample
from .train import Training, fit


class GFlowNet:
    """A sampler of discrete objects that prefers better ones.

    Args:
        env: how objects are built. policy: "tabular", "network" (3 x 64), or a policy of your own.
        flow: the loss; by default trajectory balance with the order of scores, which needs no exponent.
    Raises:
        ConfigError: an unknown policy, or an environment that `check_env` refuses.

    >>> from gossamer.architectures.gflownet import HyperGrid
    >>> net = GFlowNet(HyperGrid(4, 2)).fit(lambda s: -s.double().sum(1), Training(steps=60, batch=32))
    >>> float(net.distribution()[1].max()) > 0.5  # most of the mass lies on the best cell, (0, 0)
    True
    """

    def __init__(self, env: Env, policy: str | _Policy = "tabular", flow: Flow = Flow()) -> None:
        check_env(env)
        self.env, self.flow = env, flow
        made = {"tabular": Tabular, "network": Policy}
        if isinstance(policy, str) and policy not in made:
            raise unknown("policy", policy, made)
        self.policy: _Policy = made[policy](env) if isinstance(policy, str) else policy

    def fit(
        self, oracle: Oracle, training: Training = Training(), say: Callable[[int, float], None] = lambda s, v: None
    ) -> GFlowNet:
        """Train on an objective; see `train.fit`."""
        fit(self.policy, oracle, self.flow, training, say)
        return self

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """(count, width) objects."""
        return sample(self.policy, count, torch.Generator().manual_seed(seed)).last

    def distribution(self) -> tuple[Tensor, Tensor]:
        """All objects and their exact probabilities; see `exact_distribution`."""
        return exact_distribution(self.policy)
