"""Flow losses of a batch of trajectories: trajectory, detailed and sub-trajectory balance, and flow matching.

Each is settled at the stop, by a reward or by the order of scores alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ConfigError
from .memory import Memory
from .order import OrderLoss
from .policies import NEVER, _Policy
from .rollout import Logs, Rollout

KINDS = ("tb", "db", "subtb", "fm")


@dataclass(frozen=True)
class Flow:
    """Which loss.

    Args:
        kind: "tb" trajectory balance, "db" detailed balance, "subtb" sub-trajectory balance, "fm" flow matching.
        order: the order loss takes the place of the reward. None: log R = beta * log(score).
        beta: exponent of the reward.
        weight: of the order beside flow constraints (0.1 with "db" in the paper; "tb" has none beside it).
        kl: weight of KL(uniform over parents || P_B), where P_B is learned (0.1 where the paper uses it).
        decay: of the lengths in "subtb".
    Raises:
        ConfigError: an unknown kind, or a number out of range.
    """

    kind: str = "tb"
    order: OrderLoss | None = field(default_factory=OrderLoss)
    beta: float = 1.0
    weight: float = 0.1
    kl: float = 0.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a flow loss is one of {KINDS}, got {self.kind!r}")
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"beta, the exponent of the reward, must be positive, got {self.beta}")
        if not (0 <= self.weight < math.inf and 0 <= self.kl < math.inf):
            raise ConfigError(f"weight and kl must be finite and at least 0, got {self.weight} and {self.kl}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"the decay of lengths lies in (0, 1], got {self.decay}")


@dataclass(frozen=True)
class _Batch:
    """What every loss looks at: trajectories, their logs, and the scores (n, k) of their objects."""

    policy: _Policy
    rollout: Rollout
    logs: Logs
    scores: Tensor
    memory: Memory
    flow: Flow
    rng: torch.Generator

    def target(self) -> Tensor:
        """log R = beta * log(score) (n,)."""
        if self.scores.shape[1] != 1 or bool((self.scores <= 0).any()):
            raise ConfigError("without an order the objective must be one positive number; pass order=OrderLoss()")
        return (self.flow.beta * self.scores[:, 0].log()).float()

    def settle(self, implied: Tensor) -> Tensor:
        """Of implied log rewards (n,): the loss of their order, or the squared distance to the log reward."""
        if self.flow.order is None:
            return (implied - self.target()).square().mean()
        return self.order(implied, torch.ones_like(implied, dtype=torch.bool))

    def order(self, implied: Tensor, which: Tensor) -> Tensor:
        """The order loss of implied log rewards (n,) where `which` (n,) holds; at least two objects."""
        assert self.flow.order is not None
        seen = self.memory.all() if self.flow.order.order == "global" else self.scores[:0]
        return self.flow.order(implied[which], self.scores[which], seen, self.rng)

    def stops(self) -> tuple[Tensor, Tensor]:
        """(building steps (T, n) bool, implied log reward log F(x) + log P_F(stop | x) (n,))."""
        alive = self.rollout.alive
        stopping = alive & (self.rollout.actions == self.policy.env.actions - 1)
        return alive & ~stopping, torch.where(stopping, self.logs.flow + self.logs.forward, 0.0).sum(0)

    def together(self, constraint: Tensor, settled: Tensor) -> Tensor:
        """Flow constraint and reward weigh alike; an order weighs `flow.weight`."""
        return constraint + (self.flow.weight if self.flow.order else 1.0) * settled


def loss(policy: _Policy, rollout: Rollout, memory: Memory, flow: Flow, rng: torch.Generator) -> Tensor:
    """The loss of a batch of trajectories whose objects the memory knows."""
    batch = _Batch(policy, rollout, Logs.of(policy, rollout), memory.of(rollout.last), memory, flow, rng)
    total = _LOSSES[flow.kind](batch)
    if flow.kl > 0:
        total = total + flow.kl * parents_kl(policy, rollout)
    return total


def _tb(batch: _Batch) -> Tensor:
    """log Z + sum log P_F - sum log P_B is the implied log reward of the object."""
    return batch.settle(batch.policy.log_z + (batch.logs.forward - batch.logs.backward).sum(0))


def _db(batch: _Batch) -> Tensor:
    """log F(s) + log P_F = log F(s') + log P_B at every building step."""
    (building, implied), logs = batch.stops(), batch.logs
    following = torch.cat([logs.flow[1:], torch.zeros_like(logs.flow[:1])])
    gap = logs.flow + logs.forward - following - logs.backward
    constraint = gap[building].square().mean() if bool(building.any()) else gap.sum() * 0
    return batch.together(constraint, batch.settle(implied))


def _subtb(batch: _Batch) -> Tensor:
    """Every part of every trajectory, weighted by decay^length within the trajectory.

    The part from a state to the stop implies a log reward, log F(s) + sum log P_F - sum log P_B. Under an order those
    of equal length are compared with each other: from the last step alone, as detailed balance would, to the whole
    way, as trajectory balance does.

    Source: Madan et al. 2023, equation 11; Chen & Mauch 2024.
    """
    logs, alive, decay = batch.logs, batch.rollout.alive, batch.flow.decay
    steps = torch.where(alive, logs.forward - logs.backward, 0.0)
    potential = steps.cumsum(0) - steps - logs.flow  # (T, n): what has come before each state, less its flow
    implied = steps.sum(0) - potential  # (T, n): log reward by the rest of the way from each state
    ends = None if batch.flow.order else batch.target()
    constraint = _parts(potential, implied, alive, ends, decay)
    if batch.flow.order is None:
        return constraint
    left = alive.flip(0).cumsum(0).flip(0)  # steps from each state to the end, the stop included
    settled, mass = implied.sum() * 0, 0.0
    for length in range(1, len(implied) + 1):
        here = alive & (left == length)
        if int(here.sum()) < 2:
            break
        rewards = torch.where(here, implied, 0.0).sum(0)
        settled = settled + decay**length * batch.order(rewards, here.any(0))
        mass += decay**length
    return batch.together(constraint, settled / mass)


def _parts(potential: Tensor, implied: Tensor, alive: Tensor, ends: Tensor | None, decay: float) -> Tensor:
    """Mean over trajectories of the weighted mean of squared gaps of their parts.

    Args:
        ends: (n,) log rewards, where the parts that end at the stop count; None: only those between states.
    """
    total, mass = torch.zeros_like(potential[0]), torch.zeros_like(potential[0])
    for length in range(1, len(potential)):
        within = alive[length:]  # states t and t + length are both on the trajectory
        gaps = torch.where(within, potential[length:] - potential[:-length], 0.0)
        total = total + decay**length * gaps.square().sum(0)
        mass = mass + decay**length * within.sum(0)
    if ends is not None:
        left = alive.flip(0).cumsum(0).flip(0)
        weight = torch.where(alive, decay ** left.float(), 0.0)
        total = total + (weight * torch.where(alive, implied - ends, 0.0).square()).sum(0)
        mass = mass + weight.sum(0)
    some = mass > 0
    return (total[some] / mass[some]).mean() if bool(some.any()) else total.sum() * 0


def _fm(batch: _Batch) -> Tensor:
    """log of the flow that comes in equals log F, at every state but the first."""
    policy, rollout = batch.policy, batch.rollout
    _, implied = batch.stops()
    states = rollout.states[rollout.alive].unique(dim=0)
    states = states[policy.env.undoable(states).any(1)]
    gap = log_inflow(policy, states) - policy(states)[2]
    constraint = gap.square().mean() if len(states) else implied.sum() * 0
    return batch.together(constraint, batch.settle(implied))


_LOSSES: dict[str, Callable[[_Batch], Tensor]] = {"tb": _tb, "db": _db, "subtb": _subtb, "fm": _fm}


def log_inflow(policy: _Policy, states: Tensor) -> Tensor:
    """log sum over parents of F(parent) P_F(state | parent), (n,)."""
    env = policy.env
    possible = env.undoable(states)  # (n, A - 1)
    row, action = possible.nonzero(as_tuple=True)
    parents = env.undo(states[row], action)
    ahead, _, flow = policy(parents)
    edges = flow + ahead.gather(1, action[:, None]).squeeze(1)
    table = torch.full(possible.shape, NEVER).index_put((row, action), edges)
    return table.logsumexp(1)


def parents_kl(policy: _Policy, rollout: Rollout) -> Tensor:
    """Mean KL of the uniform distribution over parents from P_B, over visited states that have parents."""
    states = rollout.states[rollout.alive]
    possible = policy.env.undoable(states)
    states, possible = states[possible.any(1)], possible[possible.any(1)]
    if not len(states):
        return policy.log_z * 0
    back = policy(states)[1]
    count = possible.sum(1)
    return (-(torch.where(possible, back, 0.0).sum(1) / count) - count.double().log().float()).mean()
