"""Finding the branches that depend on a few positions of a long history, better than a table predictor sees."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError, unknown
from .features import Window, matrix, occurrences, signs
from .fit import METHODS, Linear, refit
from .predictors import Predictor
from .simulate import Result, simulate
from .trace import Trace

log = logging.getLogger(__name__)
CONFIDENCE = 1.645  # standard errors: one-sided 95 %, for the choice among models of one branch


@dataclass(frozen=True)
class Search:
    """How to look for sparse branches; the values in brackets are the paper's, the others are ours.

    Args:
        window: history that a model may see. max_nonzero: weights at most (50). method: "l1" or "greedy".
        split: share of the trace that is the profile; nothing behind it is looked at.
        candidates: how many of the worst branches are tried. least: executions in the profile below which a branch is
            not tried. easy: accuracy from which it is not.
        samples: latest training executions that are fitted to. validation: share of the profile's executions, the
            latest, that choose lambda and decide.
        margin: accuracy that a model must gain over the baseline on validation. risk: chance at most that a gain of 0
            passes for one, over all branches that are tried; keeps branches with few executions out.
    Raises:
        ConfigError: a value out of range.
    """

    window: Window = field(default_factory=Window)
    max_nonzero: int = 50
    method: str = "l1"
    split: float = 0.5
    candidates: int = 24
    least: int = 300
    easy: float = 0.99
    samples: int = 6000
    validation: float = 0.3
    margin: float = 0.005
    risk: float = 0.05

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("split", "validation", "risk"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}")
        for name in ("max_nonzero", "candidates", "least", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Finding:
    """What was found about one branch.

    Args:
        executed: in the profile. baseline, accuracy: of the predictor and of the model, on `validated` executions.
        reason: why it is not used; empty where it is ("sparse").
        model: the chosen one; None where nothing could be fitted.
    """

    pc: int
    executed: int
    misses: int
    validated: int
    baseline: float
    accuracy: float
    reason: str
    model: Linear | None = None

    @property
    def sparse(self) -> bool:
        """Whether the model is to be used."""
        return not self.reason

    @property
    def saved(self) -> float:
        """Misses of the profile that the model would spare, by its gain on validation."""
        return (self.accuracy - self.baseline) * self.executed


@dataclass(frozen=True, eq=False)
class SparseReport:
    """The findings for a trace, worst branch first. `profile` branches of the trace were looked at."""

    trace: Trace
    base: Predictor
    search: Search
    profile: int
    findings: tuple[Finding, ...]

    @property
    def sparse(self) -> tuple[Finding, ...]:
        """Those whose model is to be used, most saved misses first."""
        return tuple(sorted((f for f in self.findings if f.sparse), key=lambda f: -f.saved))

    def terms(self, finding: Finding) -> list[tuple[str, float, str]]:
        """The terms of a model, largest first: position in words, weight, and the branch that stands there most.

        The last is an address with the share of executions in which it stands there; empty for own outcomes.
        """
        if finding.model is None:
            return []
        at = occurrences(self.trace, finding.pc)
        at = at[at < self.profile]
        order = sorted(finding.model.support, key=lambda k: -abs(float(finding.model.weights[k])))  # type: ignore[union-attr]
        return [
            (self.search.window.describe(k), float(finding.model.weights[k]), _who(self.trace, at, k, self.search))
            for k in order
        ]


def _who(trace: Trace, at: NDArray[np.int64], feature: int, search: Search) -> str:
    if feature >= search.window.history:
        return ""
    places = at - 1 - feature
    pcs, counts = np.unique(trace.pc[places[places >= 0]], return_counts=True)
    return f"{int(pcs[counts.argmax()]):#x} ({counts.max() / counts.sum():.0%})" if len(pcs) else ""


def find_sparse(
    trace: Trace,
    base: Predictor,
    search: Search | None = None,
    *,
    branches: Sequence[int] | None = None,
    say: Callable[[str], None] = log.info,
) -> SparseReport:
    """Fit a sparse model to every hard branch of the profile and keep those that beat the baseline.

    Args:
        base: the predictor whose mispredictions are to be spared.
        branches: addresses to try, instead of the worst ones.
    Raises:
        ConfigError: a history longer than the profile, a branch that the profile does not hold.
    Source: section 3.2 of the specification; thresholds other than the 50 weights are ours.
    """
    search = search or Search()
    profile = trace.first(trace.cut(search.split))
    search.window.check(profile)
    result = simulate(profile, base)
    rows = {row.pc: row for row in result.by_branch()}
    if branches is None:
        hard = [pc for pc, row in rows.items() if row.executed >= search.least and row.accuracy < search.easy]
        branches = hard[: search.candidates]
    for pc in branches:
        if pc not in rows:
            raise ConfigError(f"branch {pc:#x} is not executed in the profile of {len(profile)} branches")
    findings = []
    for pc in branches:
        finding = _study(result, pc, search, search.risk / len(branches))
        verdict = finding.reason or f"sparse, {len(finding.model.support) if finding.model else 0} terms"
        say(f"{pc:#x}: {rows[pc].misses} misses, {finding.baseline:.4f} -> {finding.accuracy:.4f}: {verdict}")
        findings.append(finding)
    return SparseReport(trace, base, search, len(profile), tuple(findings))


@dataclass(frozen=True, eq=False)
class Samples:
    """The executions of one branch in the profile: what is fitted to, and what decides."""

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor
    base_right: NDArray[np.bool_]  # on validation


def samples(result: Result, pc: int, search: Search) -> Samples:
    """Training and validation data of one branch, from a run over the profile."""
    at = occurrences(result.trace, pc)
    cut = len(at) - max(1, round(search.validation * len(at)))
    outcome = torch.from_numpy(signs(result.trace)[at]).float()
    fitted, held = slice(max(0, cut - search.samples), cut), slice(cut, len(at))
    x, val_x = (torch.from_numpy(matrix(result.trace, at, part, search.window)).float() for part in (fitted, held))
    right = result.guess[at[held]] == result.trace.taken[at[held]]
    return Samples(x, outcome[fitted], val_x, outcome[held], right)


def _study(result: Result, pc: int, search: Search, risk: float) -> Finding:
    at = occurrences(result.trace, pc)
    misses = int((result.guess[at] != result.trace.taken[at]).sum())
    data = samples(result, pc, search)
    baseline = float(data.base_right.mean())

    def finding(reason: str, accuracy: float = baseline, model: Linear | None = None) -> Finding:
        return Finding(pc, len(at), misses, len(data.val_y), baseline, accuracy, reason, model)

    if len(data.y.unique()) < 2:
        return finding("only one outcome in the training part")
    models = METHODS[search.method](data.x, data.y, search.max_nonzero)
    if not models:
        return finding(f"no model with at most {search.max_nonzero} weights")
    models = [refit(data.x, data.y, support) for support in dict.fromkeys(m.support for m in models)] + models
    model, right = _choose(models, data)
    gain, error = _paired(right, data.base_right)
    if gain < search.margin:
        return finding(f"gain {gain:+.4f} is below {search.margin}", float(right.mean()), model)
    if gain <= NormalDist().inv_cdf(1 - risk) * error:
        return finding(f"gain {gain:+.4f} is not certain on {len(right)} executions", float(right.mean()), model)
    return finding("", float(right.mean()), model)


def _choose(models: list[Linear], data: Samples) -> tuple[Linear, NDArray[np.bool_]]:
    """The model with the fewest weights that is not certainly (one-sided 95 %) worse than the most accurate one."""
    rights = [((m.score(data.val_x) >= 0) == (data.val_y > 0)).numpy() for m in models]
    best = max(range(len(models)), key=lambda i: float(rights[i].mean()))
    fine = []
    for i, right in enumerate(rights):
        loss, error = _paired(rights[best], right)
        if loss <= CONFIDENCE * error:
            fine.append(i)
    chosen = min(fine, key=lambda i: (len(models[i].support), -float(rights[i].mean())))
    return models[chosen], rights[chosen]


def _paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean of first - second and its standard error."""
    difference = first.astype(np.float64) - second
    return float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
