"""Speed of the predictors and of the sparse fit, each against a rival in the same process.

    python benchmarks/branch_prediction/speed.py [TRACE]

One thread. Predictors: native code in million branches per second (best of 5 turns, all predictors in turns), and how
many times faster than the plain Python version on the first 20,000 branches. Fits: one L1 logistic model of 512 + 32
features on 6000 executions at the same penalty, against scikit-learn's saga at the tolerance that reaches the same
objective. Without TRACE a stream is generated.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from gossamer.domains.branch_prediction import PREDICTORS, Trace, Window, read
from gossamer.domains.branch_prediction.features import matrix, occurrences, signs
from gossamer.domains.branch_prediction.fit import fit_l1
from gossamer.domains.branch_prediction.reference import play
from gossamer.domains.branch_prediction.streams import vote_after_noise

TURNS, SHORT, PENALTY = 5, 20_000, 0.01


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def predictors(trace: Trace) -> None:
    """Print the speed of every predictor."""
    best = dict.fromkeys(PREDICTORS, float("inf"))
    for _ in range(TURNS):
        for name, predictor in PREDICTORS.items():
            best[name] = min(best[name], seconds(lambda p=predictor: p.play(trace)))
    short = trace.first(SHORT)
    print(f"{'predictor':20} {'million/s':>10} {'times Python':>13}")
    for name, predictor in PREDICTORS.items():
        plain = seconds(lambda p=predictor: play(p, short)) / len(short)
        each = best[name] / len(trace)
        print(f"{name:20} {1e-6 / each:10.1f} {plain / each:13.0f}")


def fits() -> None:
    """Print our time and scikit-learn's for models of equal objective."""
    from sklearn.linear_model import LogisticRegression

    stream = vote_after_noise((5, 3, 3, 2, 1, 1), rounds=6500, seed=1)
    at = occurrences(stream.trace, stream.pc)[-6000:]
    x = torch.from_numpy(matrix(stream.trace, at, slice(None), Window())).float()
    y = torch.from_numpy(signs(stream.trace)[at]).float()

    def objective(weights: np.ndarray, bias: float) -> float:
        margin = y.double().numpy() * (x.double().numpy() @ weights + bias)
        return float(np.logaddexp(0, -margin).mean() + PENALTY * np.abs(weights).sum())

    ours = fit_l1(x, y, PENALTY)
    target = objective(ours.weights.double().numpy(), ours.bias)
    mine = min(seconds(lambda: fit_l1(x, y, PENALTY)) for _ in range(TURNS))
    for tolerance in (1e-3, 1e-4, 1e-5):
        other = LogisticRegression(
            l1_ratio=1.0, C=1 / (PENALTY * len(y)), solver="saga", tol=tolerance, max_iter=5000, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken = seconds(lambda model=other: model.fit(x.numpy(), y.numpy()))
        behind = objective(other.coef_[0], float(other.intercept_[0])) - target
        print(f"saga, tolerance {tolerance:g}: {taken / mine:6.1f} times our time, objective {behind:+.1e} from ours")


if __name__ == "__main__":
    predictors(read(sys.argv[1]) if len(sys.argv) > 1 else vote_after_noise((5, 3, 3, 2, 1, 1), rounds=20_000).trace)
    fits()
