"""Trajectories: sampled forward from the start, or backward from given objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .envs import Env
from .policies import _Policy


@dataclass(frozen=True)
class Rollout:
    """n trajectories of at most T steps, stop included.

    Args:
        states: (T, n, width); actions: (T, n); alive: (T, n) bool, false behind the end. last: (n, width) objects.
    """

    states: Tensor
    actions: Tensor
    alive: Tensor
    last: Tensor


@torch.no_grad()
def sample(policy: _Policy, count: int, rng: torch.Generator, explore: float = 0.0) -> Rollout:
    """`count` trajectories by P_F, each action random with probability `explore`."""
    env: Env = policy.env
    states, done = env.start(count), torch.zeros(count, dtype=torch.bool)
    seen, acts, lives = [], [], []
    while not bool(done.all()):
        legal = env.legal(states)
        chances = policy(states)[0].exp()
        uniform = legal / legal.sum(1, keepdim=True)
        mixed = torch.where(legal, (1 - explore) * chances + explore * uniform, 0.0)
        actions = torch.multinomial(mixed, 1, generator=rng).squeeze(1)
        actions = torch.where(done, env.actions - 1, actions)
        seen.append(states)
        acts.append(actions)
        lives.append(~done)
        states = env.step(states, actions)
        done = done | (actions == env.actions - 1)
    return Rollout(torch.stack(seen), torch.stack(acts), torch.stack(lives), states)


@torch.no_grad()
def backward(policy: _Policy, objects: Tensor, rng: torch.Generator) -> Rollout:
    """Trajectories that end in `objects` (n, width), by P_B."""
    env: Env = policy.env
    states = objects
    stop = torch.full((len(objects),), env.actions - 1)
    seen, acts = [states], [stop]
    while bool((moving := env.undoable(states).any(1)).any()):
        chances = policy(states)[1].exp()
        chances = torch.where(moving[:, None], chances, 1.0)
        actions = torch.multinomial(chances, 1, generator=rng).squeeze(1)
        before = torch.where(moving[:, None], env.undo(states, actions), states)
        seen.append(before)
        acts.append(torch.where(moving, actions, -1))
        states = before
    seen.reverse()
    acts.reverse()
    stacked, taken = torch.stack(seen), torch.stack(acts)
    return Rollout(stacked, taken.clamp_min(0), taken >= 0, objects)


@dataclass(frozen=True)
class Logs:
    """Log-probabilities along a rollout, 0 where it is not alive: forward and backward (T, n), flow (T, n)."""

    forward: Tensor
    backward: Tensor
    flow: Tensor

    @staticmethod
    def of(policy: _Policy, rollout: Rollout) -> Logs:
        """With gradients. `backward[t]` belongs to the step from state t to state t + 1; 0 at the stop."""
        env: Env = policy.env
        steps, count, width = rollout.states.shape
        flat, acts = rollout.states.reshape(-1, width), rollout.actions.reshape(-1)
        ahead, _, flow = policy(flat)
        forward = ahead.gather(1, acts[:, None]).view(steps, count)
        building = rollout.alive & (rollout.actions < env.actions - 1)
        after = env.step(flat, acts)
        _, back, _ = policy(after)
        taken = acts.clamp_max(env.actions - 2)
        backward_log = back.gather(1, taken[:, None]).view(steps, count)
        return Logs(
            torch.where(rollout.alive, forward, 0.0), torch.where(building, backward_log, 0.0), flow.view(steps, count)
        )
