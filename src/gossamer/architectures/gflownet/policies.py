"""What a GFlowNet learns: log-probabilities of actions, of ways back, and log flows, from a table or a network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .envs import Env, check_table

NEVER = -1e9  # log-probability of what is illegal; finite, so that its gradient is zero and not NaN


class _Policy(nn.Module):
    """What both kinds share.

    Args:
        env: the environment. learn_backward: P_B is learned; else uniform over parents.
    """

    def __init__(self, env: Env, learn_backward: bool = False) -> None:
        super().__init__()
        self.env, self.learn_backward = env, learn_backward
        self.log_z = nn.Parameter(torch.zeros(()))

    def raw(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unnormalised forward (n, A) and backward (n, A - 1) scores and log flows (n,)."""
        raise AssertionError

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log P_F (n, A), log P_B (n, A - 1), log F (n,)) of states (n, width)."""
        ahead, back, flow = self.raw(states)
        legal, undoable = self.env.legal(states), self.env.undoable(states)
        forward = torch.where(legal, ahead, NEVER).log_softmax(1)
        back = back if self.learn_backward else torch.zeros_like(back)
        backward = torch.where(undoable, back, NEVER).log_softmax(1)
        return forward, backward, flow

    def groups(self, lr: float, lr_z: float) -> list[dict[str, Any]]:
        """Parameters for an optimiser, log Z at a rate of its own."""
        others = [p for name, p in self.named_parameters() if name != "log_z"]
        return [{"params": others, "lr": lr}, {"params": [self.log_z], "lr": lr_z}]


class Tabular(_Policy):
    """A row of scores for each state: exact, for small environments."""

    def __init__(self, env: Env, learn_backward: bool = False) -> None:
        super().__init__(env, learn_backward)
        check_table(env)
        self.table = nn.Parameter(torch.zeros(env.size, 2 * env.actions))

    def raw(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, a = self.table[self.env.index(states)], self.env.actions
        return rows[:, :a], rows[:, a:-1], rows[:, -1]


class Policy(_Policy):
    """A perceptron on the environment's features (the paper's grids: 3 hidden layers of 64, LeakyReLU)."""

    def __init__(self, env: Env, hidden: tuple[int, ...] = (64, 64, 64), learn_backward: bool = False) -> None:
        super().__init__(env, learn_backward)
        widths = [env.features(env.start(1)).shape[1], *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 2 * env.actions))

    def raw(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, a = self.net(self.env.features(states)), self.env.actions
        return rows[:, :a], rows[:, a:-1], rows[:, -1]
