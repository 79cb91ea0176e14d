"""Every predictor again in plain Python, one branch at a time: what the native code is tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from .counters import BimodalSteps, GshareSteps, StaticSteps, TournamentSteps
from .linear import HashedPerceptronSteps, PerceptronSteps
from .scl import TageSclSteps
from .tage import TageSteps

if TYPE_CHECKING:
    from ..predictors import Predictor
    from ..trace import Bits, Trace


class Steps(Protocol):
    """A predictor at work: predict a branch, then learn its outcome."""

    def predict(self, pc: int) -> bool: ...

    def update(self, pc: int, taken: bool, quiet: bool = False) -> None: ...


def start(predictor: Predictor) -> Steps:
    """A fresh predictor to be stepped by hand."""
    from .. import predictors as p

    match predictor:
        case p.Static():
            return StaticSteps(predictor.taken)
        case p.Bimodal():
            return BimodalSteps(predictor.log_size)
        case p.Gshare():
            return GshareSteps(predictor.log_size, predictor.history)
        case p.Tournament():
            return TournamentSteps(predictor.log_local, predictor.local_history, predictor.global_history)
        case p.Perceptron():
            return PerceptronSteps(predictor.entries, predictor.history, predictor.threshold)
        case p.HashedPerceptron():
            return HashedPerceptronSteps(predictor.lengths, predictor.log_size, predictor.weight_bits)
        case p.TAGESCL():
            return TageSclSteps(predictor)
        case p.TAGE():
            return TageSteps(predictor.lengths, predictor.log_base, predictor.log_size, predictor.tag_bits)
    raise TypeError(f"no reference for {predictor!r}")


def play(predictor: Predictor, trace: Trace, quiet: Bits | None = None) -> Bits:
    """`Predictor.play` step by step; some hundred times slower."""
    steps = start(predictor)
    out = np.empty(len(trace), np.uint8)
    stop = np.zeros(len(trace), np.uint8) if quiet is None else quiet
    rows = zip(trace.pc.tolist(), trace.taken.tolist(), stop.tolist(), strict=True)
    for i, (pc, taken, hushed) in enumerate(rows):
        out[i] = steps.predict(pc)
        steps.update(pc, bool(taken), bool(hushed))
    return out
