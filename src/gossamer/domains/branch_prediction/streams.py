"""Generated branch streams of which the right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError
from .trace import Trace


@dataclass(frozen=True)
class Planted:
    """A stream with one branch that depends on a few earlier ones.

    Args:
        pc: address of the dependent branch. positions: how many branches ago those were (1 = the one before).
        noise: share of its outcomes that are flipped: no predictor can be better than this.
    """

    trace: Trace
    pc: int
    positions: tuple[int, ...]
    noise: float


def vote_after_noise(
    weights: Sequence[int], rounds: int = 8000, gap: int = 60, noise: float = 0.05, seed: int = 0
) -> Planted:
    """Rounds of voters (random branches), `gap` random branches, and one that follows the weighted vote, often.

    Every noise branch has one of 60 addresses at random and a fair outcome, so a predictor that must match the whole
    history sees a new one every time.

    Args:
        weights: of the voters, in the order of execution; positive, with an odd sum, so that no vote is a tie.
        noise: share of the votes that are flipped.
    Raises:
        ConfigError: a value out of range.
    """
    if rounds < 1 or gap < 0 or not 0 <= noise <= 0.5:
        raise ConfigError(f"needs rounds >= 1, gap >= 0, 0 <= noise <= 0.5; got {rounds}, {gap}, {noise}")
    if not weights or min(weights) < 1 or sum(weights) % 2 == 0 or len(weights) > 100:
        raise ConfigError(f"needs 1 to 100 positive weights with an odd sum, got {tuple(weights)}")
    rng, count = np.random.default_rng(seed), len(weights)
    pcs = rng.permutation(np.unique(rng.integers(0x400000, 0x500000, 400)))[: count + 61].astype(np.uint64)
    pc = np.empty((rounds, count + gap + 1), np.uint64)
    pc[:, :count], pc[:, -1] = pcs[:count], pcs[count]
    pc[:, count:-1] = pcs[count + 1 + rng.integers(0, 60, (rounds, gap))]
    taken = rng.integers(0, 2, pc.shape).astype(np.uint8)
    flip = rng.random(rounds) < noise
    taken[:, -1] = (2 * (taken[:, :count] @ np.array(weights)) > sum(weights)) ^ flip
    trace = Trace(pc.ravel(), taken.ravel(), None, f"vote of {count}, gap {gap}, seed {seed}")
    return Planted(trace, int(pcs[count]), tuple(range(gap + 1, gap + count + 1)), noise)


def majority_after_noise(rounds: int = 8000, gap: int = 60, noise: float = 0.05, seed: int = 0) -> Planted:
    """`vote_after_noise` of three equal voters: the stream of the specification."""
    return vote_after_noise((1, 1, 1), rounds, gap, noise, seed)


def periodic(pattern: str, repeats: int, pc: int = 0x400100) -> Trace:
    """One branch that repeats a pattern such as "TN" or "TTTN". Raises ConfigError for other letters."""
    if not pattern or set(pattern) - {"T", "N"} or repeats < 1:
        raise ConfigError(f"needs a pattern of T and N and repeats >= 1, got {pattern!r} and {repeats}")
    taken = np.array([letter == "T" for letter in pattern] * repeats, np.uint8)
    return Trace(np.full(len(taken), pc, np.uint64), taken, None, f"{pattern} x {repeats}")


def coin(count: int, taken: float = 0.5, branches: int = 1, seed: int = 0) -> Trace:
    """Independent outcomes, taken with the given probability, of `branches` addresses in turn."""
    if count < 1 or branches < 1 or not 0 <= taken <= 1:
        raise ConfigError(f"needs count >= 1, branches >= 1, 0 <= taken <= 1; got {count}, {branches}, {taken}")
    rng = np.random.default_rng(seed)
    pc = (0x400000 + 4 * (np.arange(count) % branches)).astype(np.uint64)
    return Trace(pc, (rng.random(count) < taken).astype(np.uint8), None, f"coin {taken}")


def interleave(traces: Sequence[Trace], seed: int = 0) -> Trace:
    """Several streams mixed in random order, each in its own; as long as the shortest allows.

    Raises:
        ConfigError: no traces.
    """
    if not traces:
        raise ConfigError("needs at least one trace to interleave")
    length = min(map(len, traces))
    which = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(traces)), length))
    pc, taken = np.empty(len(which), np.uint64), np.empty(len(which), np.uint8)
    for index, trace in enumerate(traces):
        pc[which == index], taken[which == index] = trace.pc[:length], trace.taken[:length]
    return Trace(pc, taken, None, " and ".join(trace.name for trace in traces))
