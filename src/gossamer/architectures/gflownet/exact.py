"""The exact distribution of objects under a policy, by dynamic programming over all states."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from .policies import _Policy

LIMIT = 500_000


@torch.no_grad()
def exact_distribution(policy: _Policy, limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """(objects (m, width), probabilities (m,) float64) of every state that may stop.

    Raises:
        ConfigError: more states than `limit` (both are named).
    """
    env = policy.env
    if env.size > limit:
        raise ConfigError(f"an exact distribution over {env.size} states is beyond the limit of {limit}")
    states = env.all_states()
    log_forward = policy(states)[0].double()
    legal = env.legal(states)
    arrive = torch.zeros(env.size, dtype=torch.float64)
    arrive[env.index(env.start(1))] = 1.0
    index = env.index(states)
    depth = _depths(policy, states)
    for level in range(int(depth.max()) + 1):
        rows = (depth == level).nonzero().flatten()
        for action in range(env.actions - 1):
            able = rows[legal[rows, action]]
            if len(able):
                after = env.index(env.step(states[able], torch.full((len(able),), action)))
                arrive.index_add_(0, after, arrive[index[able]] * log_forward[able, action].exp())
    stops = legal[:, -1]
    return states[stops], arrive[index[stops]] * log_forward[stops, -1].exp()


def _depths(policy: _Policy, states: Tensor) -> Tensor:
    """Steps from the start to every state: those of all its ways are equally many."""
    env = policy.env
    depth = torch.full((len(states),), -1)
    place = torch.full((env.size,), -1)
    place[env.index(states)] = torch.arange(len(states))
    frontier = place[env.index(env.start(1))]
    depth[frontier] = 0
    level = 0
    while len(frontier):
        legal = env.legal(states[frontier])[:, :-1]
        row, action = legal.nonzero(as_tuple=True)
        reached = place[env.index(env.step(states[frontier[row]], action))].unique() if len(row) else frontier[:0]
        level += 1
        depth[reached] = level
        frontier = reached
    return depth
