"""POT's sparsity-constrained solver and ours in turns on one thread: ratios of processor time at equal accuracy.

Semi-dual, L-BFGS, at most 500 steps, until a step gains less than 1e-9 of the value, for both; ours also stops at the
marginal error that POT ends with, so that it is not charged for polishing. Squared distances of two clouds in the
plane, uniform marginals. Usage: python benchmarks/transport/against_pot.py [--sizes 100 300 1000] [--k 2 4 16]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings

import ot
import torch

from gossamer.transport import LBFGS, KSparse, solve_ot


def clouds(n: int) -> torch.Tensor:
    """(n, n) costs, at most 1."""
    source = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 2, generator=source, dtype=torch.float64) for _ in range(2))
    cost = torch.cdist(x, y).square()
    return cost / cost.max()


def pot(cost: torch.Tensor, k: int, gamma: float) -> tuple[float, float, float]:
    """Seconds, value, L1 row error."""
    a = ot.unif(len(cost))
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it prints at every evaluation
        warnings.simplefilter("ignore")
        plan, log = ot.smooth.smooth_ot_semi_dual(a, a, cost.numpy(), gamma, "sparsity_constrained", k, log=True)
    return time.process_time() - began, -log["res"].fun, abs(plan.sum(1) - a).sum()


def ours(cost: torch.Tensor, k: int, gamma: float, error: float) -> tuple[float, float, float]:
    """Seconds, value, L1 row error; `error` is what may remain."""
    solver = LBFGS(steps=500, gain=1e-9, refine=False, tolerance=max(error, 1e-6))
    began = time.process_time()
    found = solve_ot(cost, reg=KSparse(k, gamma), solver=solver)
    return time.process_time() - began, float(found.value), float(found.row_error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| n | k | POT time / ours (median) | least | value POT | ours | row error POT | ours |\n|" + "---|" * 8)
    for n in options.sizes:
        cost = clouds(n)
        for k in options.k:
            gamma = n / 10  # so that a column would like several entries
            ours(cost, k, gamma, 1.0)
            pairs = []
            for _ in range(options.rounds):
                first = pot(cost, k, gamma)
                pairs.append((first, ours(cost, k, gamma, 1.01 * first[2])))
            ratios = [first[0] / second[0] for first, second in pairs]
            (_, v, e), (_, w, f) = pairs[-1]
            print(f"| {n} | {k} | {statistics.median(ratios):.1f} | {min(ratios):.1f} ", end="")
            print(f"| {v:.7f} | {w:.7f} | {e:.1e} | {f:.1e} |", flush=True)


if __name__ == "__main__":
    main()
