"""What fewer ReLUs save in planning: solve time and nodes of branch and bound, dense model / sparse model.

Side by side in one process, one thread, at equal horizons, starts, gap and way to the bounds, without a sampler's help.
Where the dense program runs into the limit, its ratio of times is a least value, marked with >.
Usage: python benchmarks/dynamics/planning.py [--hidden 24] [--relus 12] [--horizons 1 2 3] [--starts 3] [--limit 60]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
import torch

from gossamer.domains.dynamics import (
    Budget,
    GatedReLUMLP,
    Goal,
    MILPPlanner,
    Problem,
    Pushing,
    fit,
    rmse,
    sparsify,
)
from gossamer.domains.dynamics.program import solve

SYSTEM = Pushing()


def planner(model: GatedReLUMLP, horizon: int) -> MILPPlanner:
    """Push the disc from the origin 0.35 to the right; bounds by linear programs for both models."""
    goal = Goal(np.array([0.35, 0.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    made = MILPPlanner(Problem(SYSTEM.dynamics(model), horizon, SYSTEM.u_box, goal), bounds="lp")
    made.limits()
    return made


def measure(own: MILPPlanner, start: np.ndarray, limit: float) -> dict[str, float]:
    """Seconds of CPU, nodes, binaries, and whether the limit ended the search."""
    program, _ = own.program(start)
    begun = time.process_time()
    found = solve(program, time_limit=limit, gap=1e-3)
    seconds = time.process_time() - begun
    return {
        "seconds": seconds,
        "nodes": max(1, found.nodes),
        "binaries": program.binaries,
        "limit": found.status == "limit",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=24)
    parser.add_argument("--relus", type=int, default=12)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, test = SYSTEM.data(40_000, 1), SYSTEM.data(5_000, 10_001)
    dense = fit(GatedReLUMLP((4, options.hidden, options.hidden, 2)), data, options.steps)
    sparse = sparsify(dense, data, options.relus, budget=Budget(options.steps // 6, options.steps // 20, options.steps))
    print(f"test error sparse / dense: {rmse(sparse, test) / rmse(dense, test):.2f}\n")
    rng = np.random.default_rng(0)
    angles = rng.uniform(-0.35, 0.35, options.starts)
    starts = [np.array([0, 0, 0.4 * np.cos(a), 0.4 * np.sin(a)]) for a in angles]
    print("| T | binaries dense / sparse | time dense / sparse, median | least | most | nodes, median | at the limit |")
    print("|---|---|---|---|---|---|---|")
    for horizon in options.horizons:
        models = [planner(model, horizon) for model in (dense, sparse)]
        pairs = [[measure(model, start, options.limit) for model in models] for start in starts]
        times, nodes = ([a[key] / b[key] for a, b in pairs] for key in ("seconds", "nodes"))
        binaries = [statistics.median(pair[side]["binaries"] for pair in pairs) for side in (0, 1)]
        ended = [sum(pair[side]["limit"] for pair in pairs) for side in (0, 1)]
        least = ">" if ended[0] else ""
        searched = "not finished" if any(ended) else f"{statistics.median(nodes):.1f}"
        print(
            f"| {horizon} | {binaries[0]:.0f} / {binaries[1]:.0f} | {least}{statistics.median(times):.1f} "
            f"| {min(times):.1f} | {max(times):.1f} | {searched} "
            f"| {ended[0]} / {ended[1]} of {len(pairs)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
