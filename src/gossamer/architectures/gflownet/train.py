"""Training: flow losses (trajectory, detailed, sub-trajectory, matching) with a reward or with an order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ConfigError, NumericsError
from .order import OrderLoss, check_scores, warn_without_signal
from .policies import NEVER, _Policy
from .rollout import Logs, Rollout, backward, sample

Oracle = Callable[[Tensor], Tensor]
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


@dataclass(frozen=True)
class Training:
    """How long and how: the defaults are the paper's of the grids, with tables instead of networks.

    Args:
        steps, batch: optimiser steps and trajectories in each. lr, lr_z: of Adam. explore: random actions.
        replay: share of each batch drawn by P_B from the best objects seen. clip: largest gradient norm; None: none.
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 0.1
    lr_z: float = 0.1
    explore: float = 0.05
    replay: float = 0.0
    clip: float | None = None
    seed: int = 0


def fit(
    policy: _Policy,
    oracle: Oracle,
    flow: Flow = Flow(),
    training: Training = Training(),
    say: Callable[[int, float], None] = lambda step, loss: None,
) -> _Policy:
    """Train a policy on an objective (states (n, width) -> scores (n,) or (n, k), larger is better).

    Raises:
        NumericsError: a score or the loss is not finite. ConfigError: a batch of one under an order, or a reward that
            is not positive without one. ShapeError: scores change their number.
    """
    rng = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.Adam(policy.groups(training.lr, training.lr_z))
    memory = Memory()
    for step in range(training.steps):
        rollout = sample(policy, training.batch, rng, training.explore)
        memory.add(rollout.last, oracle)
        if step == 0:
            warn_without_signal(memory.of(rollout.last))
        batches = [rollout]
        if training.replay > 0 and step:
            count = max(1, round(training.replay * training.batch))
            batches.append(backward(policy, memory.best(count, rng), rng))
        value = torch.stack([loss(policy, batch, memory, flow, rng) for batch in batches]).mean()
        if not bool(torch.isfinite(value)):
            raise NumericsError(f"the loss is {float(value.detach())} at step {step}; lower the learning rate")
        optimizer.zero_grad()
        value.backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), training.clip)
        optimizer.step()
        say(step, float(value.detach()))
    return policy


class Memory:
    """All objects seen, with their scores; an object is scored once."""

    def __init__(self) -> None:
        self.scores: dict[tuple[int, ...], Tensor] = {}
        self._objectives: int | None = None

    def add(self, objects: Tensor, oracle: Oracle) -> None:
        """Score what is new, in one call."""
        fresh = [key for key in dict.fromkeys(map(tuple, objects.tolist())) if key not in self.scores]
        if fresh:
            found = check_scores(oracle(torch.tensor(fresh)), torch.tensor(fresh), self._objectives)
            self._objectives = found.shape[1]
            self.scores.update(zip(fresh, found, strict=True))

    def of(self, objects: Tensor) -> Tensor:
        """(n, k) scores of known objects."""
        return torch.stack([self.scores[key] for key in map(tuple, objects.tolist())])

    def all(self) -> Tensor:
        """(m, k)."""
        return torch.stack(list(self.scores.values()))

    def best(self, count: int, rng: torch.Generator) -> Tensor:
        """Half from the top tenth by the first objective, half from the rest, with replacement."""
        keys = list(self.scores)
        order = torch.stack([self.scores[key][0] for key in keys]).argsort(descending=True)
        top = max(1, len(keys) // 10)
        first = order[torch.randint(top, (count // 2,), generator=rng)]
        rest = order[torch.randint(len(keys), (count - count // 2,), generator=rng)]
        return torch.tensor([keys[i] for i in torch.cat([first, rest]).tolist()])


def loss(policy: _Policy, rollout: Rollout, memory: Memory, flow: Flow, rng: torch.Generator) -> Tensor:
    """The loss of a batch of trajectories."""
    logs = Logs.of(policy, rollout)
    scores = memory.of(rollout.last)
    total = _KINDS[flow.kind](policy, rollout, logs, scores, memory, flow, rng)
    if flow.kl > 0:
        total = total + flow.kl * parents_kl(policy, rollout)
    return total


def _target(flow: Flow, scores: Tensor) -> Tensor:
    """log R = beta * log(score) (n,)."""
    if scores.shape[1] != 1 or bool((scores <= 0).any()):
        raise ConfigError("without an order the objective must be one positive number; pass order=OrderLoss()")
    return (flow.beta * scores[:, 0].log()).float()


def _settle(implied: Tensor, scores: Tensor, memory: Memory, flow: Flow, rng: torch.Generator) -> Tensor:
    """The loss at the terminal states: order, or squared distance to the log reward."""
    if flow.order is None:
        return (implied - _target(flow, scores)).square().mean()
    seen = memory.all() if flow.order.order == "global" else scores[:0]
    return flow.order(implied, scores, seen, rng)


def _tb(
    policy: _Policy, rollout: Rollout, logs: Logs, scores: Tensor, memory: Memory, flow: Flow, rng: torch.Generator
) -> Tensor:
    """log Z + sum log P_F - sum log P_B is the implied log reward of the object."""
    return _settle(policy.log_z + (logs.forward - logs.backward).sum(0), scores, memory, flow, rng)


def _stops(policy: _Policy, rollout: Rollout, logs: Logs) -> tuple[Tensor, Tensor]:
    """(building steps (T, n) bool, implied log reward log F(x) + log P_F(stop | x) (n,))."""
    stopping = rollout.alive & (rollout.actions == policy.env.actions - 1)
    return rollout.alive & ~stopping, torch.where(stopping, logs.flow + logs.forward, 0.0).sum(0)


def _next_flow(logs: Logs) -> Tensor:
    return torch.cat([logs.flow[1:], torch.zeros_like(logs.flow[:1])])


def _db(
    policy: _Policy, rollout: Rollout, logs: Logs, scores: Tensor, memory: Memory, flow: Flow, rng: torch.Generator
) -> Tensor:
    building, implied = _stops(policy, rollout, logs)
    gap = logs.flow + logs.forward - _next_flow(logs) - logs.backward
    constraint = gap[building].square().mean() if bool(building.any()) else gap.sum() * 0
    return constraint + (flow.weight if flow.order else 1.0) * _settle(implied, scores, memory, flow, rng)


def _subtb(
    policy: _Policy, rollout: Rollout, logs: Logs, scores: Tensor, memory: Memory, flow: Flow, rng: torch.Generator
) -> Tensor:
    """Squared gaps of all parts of trajectories between building states, weighted by decay^length."""
    building, implied = _stops(policy, rollout, logs)
    inner = torch.where(building, logs.forward - logs.backward, 0.0)
    potential = torch.cat([torch.zeros_like(inner[:1]), inner.cumsum(0)])[:-1] - logs.flow  # (T, n)
    total, mass = implied.sum() * 0, 0.0
    for length in range(1, len(potential)):
        within = rollout.alive[length:]  # states t and t + length are both on the trajectory
        if not bool(within.any()):
            break
        gaps = (potential[length:] - potential[:-length])[within]
        total = total + flow.decay**length * gaps.square().mean()
        mass += flow.decay**length
    constraint = total / mass if mass else total
    return constraint + (flow.weight if flow.order else 1.0) * _settle(implied, scores, memory, flow, rng)


def _fm(
    policy: _Policy, rollout: Rollout, logs: Logs, scores: Tensor, memory: Memory, flow: Flow, rng: torch.Generator
) -> Tensor:
    """log of the flow that comes in equals log F, at every state but the first."""
    env = policy.env
    _, implied = _stops(policy, rollout, logs)
    states = rollout.states[rollout.alive].unique(dim=0)
    states = states[env.undoable(states).any(1)]
    gap = log_inflow(policy, states) - policy(states)[2]
    constraint = gap.square().mean() if len(states) else implied.sum() * 0
    return constraint + (flow.weight if flow.order else 1.0) * _settle(implied, scores, memory, flow, rng)


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


_KINDS = {"tb": _tb, "db": _db, "subtb": _subtb, "fm": _fm}


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
