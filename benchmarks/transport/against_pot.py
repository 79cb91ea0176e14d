"""POT's sparsity-constrained solver and ours side by side on one thread: ratios of time at equal stopping rules.

Semi-dual, L-BFGS, at most 500 steps, relative gain 1e-9 for both; squared distances of two clouds in the plane, uniform
marginals. Usage: python benchmarks/transport/against_pot.py [--sizes 100 400 1000] [--rounds 3]
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

SOLVER = LBFGS(steps=500, gain=1e-9, refine=False)


def clouds(n: int) -> torch.Tensor:
    """(n, n) costs, at most 1."""
    source = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 2, generator=source, dtype=torch.float64) for _ in range(2))
    cost = torch.cdist(x, y).square()
    return cost / cost.max()


def pot(cost: torch.Tensor, k: int, gamma: float) -> tuple[float, float, float]:
    """Seconds, value, L1 row error."""
    a = ot.unif(len(cost))
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it prints at every evaluation
        warnings.simplefilter("ignore")
        plan, log = ot.smooth.smooth_ot_semi_dual(a, a, cost.numpy(), gamma, "sparsity_constrained", k, log=True)
    return time.perf_counter() - began, -log["res"].fun, abs(plan.sum(1) - a).sum()


def ours(cost: torch.Tensor, k: int, gamma: float) -> tuple[float, float, float]:
    """Seconds, value, L1 row error."""
    began = time.perf_counter()
    found = solve_ot(cost, reg=KSparse(k, gamma), solver=SOLVER)
    return time.perf_counter() - began, float(found.value), float(found.row_error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 400, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| n | k | POT time / ours (median) | least | value POT | ours | row error POT | ours |\n|" + "---|" * 8)
    for n in options.sizes:
        cost = clouds(n)
        for k in (2, 4, 16):
            gamma = n / 10  # so that a column would like several entries
            ours(cost, k, gamma)
            pairs = [(pot(cost, k, gamma), ours(cost, k, gamma)) for _ in range(options.rounds)]
            ratios = [first[0] / second[0] for first, second in pairs]
            (_, v, e), (_, w, f) = pairs[-1]
            print(f"| {n} | {k} | {statistics.median(ratios):.1f} | {min(ratios):.1f} ", end="")
            print(f"| {v:.7f} | {w:.7f} | {e:.3f} | {f:.3f} |", flush=True)


if __name__ == "__main__":
    main()
