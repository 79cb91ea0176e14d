"""Architecture search with a GFlowNet over the shared search space, through the counted evaluator."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConfigError
from ..evaluator import Evaluation, Evaluator
from .balance import Flow, loss
from .envs import SlotFill
from .memory import Memory
from .policies import Policy
from .rollout import backward, sample
from .train import Training


def search_gflownet(
    evaluator: Evaluator,
    *,
    flow: Flow = Flow(),
    warm: int = 64,
    fresh: int = 10,
    updates: int = 200,
    training: Training = Training(batch=64, lr=1e-3, lr_z=0.1),
    seed: int = 0,
) -> list[Evaluation]:
    """Search until the evaluator's budget is spent: score, train on all that is known, draw new ones, score them.

    Args:
        evaluator: of a space of options without a rule; objectives are turned so that larger is better.
        warm: random architectures to begin with (the paper: 64). fresh: new ones a round (10).
        updates: optimiser steps a round (200), on trajectories drawn backward from known architectures.
    Returns:
        the evaluator's history: at equal budgets it compares with `random_search`.
    Raises:
        ConfigError: a space with other slots than options or with a rule, or a number below 1.
    Source: Chen & Mauch 2024, section 5.4; networks are not reset between rounds.
    """
    if min(warm, fresh, updates) < 1:
        raise ConfigError(f"warm, fresh and updates must be at least 1, got {warm}, {fresh} and {updates}")
    env = SlotFill(evaluator.space)
    rng = torch.Generator().manual_seed(seed)
    signs = torch.tensor([1.0 if goal == "max" else -1.0 for goal in evaluator.goals], dtype=torch.float64)

    def oracle(states: Tensor) -> Tensor:
        rows = [evaluator.evaluate(env.architecture(state)).values for state in states]
        return torch.tensor(rows, dtype=torch.float64) * signs

    memory, policy = Memory(), Policy(env, learn_backward=True)
    optimizer = torch.optim.Adam(policy.groups(training.lr, training.lr_z))
    _score_new(memory, oracle, sample(policy, 20 * warm, rng, 1.0).last, min(warm, evaluator.remaining))
    while evaluator.remaining and len(memory.scores) < evaluator.space.size:
        for _ in range(updates):
            rollout = backward(policy, memory.best(training.batch, rng), rng)
            value = loss(policy, rollout, memory, replace(flow, kl=flow.kl or 0.1), rng)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), training.clip or 10.0)
            optimizer.step()
        drawn = torch.cat([sample(policy, 20 * fresh, rng, explore).last for explore in (training.explore, 1.0)])
        _score_new(memory, oracle, drawn, min(fresh, evaluator.remaining))
    return evaluator.history


def _score_new(memory: Memory, oracle: object, drawn: Tensor, count: int) -> None:
    """Score the first `count` objects that were not seen before."""
    keys = [key for key in dict.fromkeys(map(tuple, drawn.tolist())) if key not in memory.scores][:count]
    if keys:
        memory.add(torch.tensor(keys), oracle)  # type: ignore[arg-type]
