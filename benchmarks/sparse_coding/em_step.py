"""One EM step of binary sparse coding: ratio to numpy, side by side in one process, one thread.

Two numpy versions of the same update stand for the original library, which no index offers: one goes point by point, as
the original does; the other computes all points at once. With `--prosper FOLDER`, a checkout of the original (package
`prosper` inside) runs too; its uses of names that numpy dropped are put back, and mpi4py is replaced if absent.
Before timing, all are checked to give the same parameters.
Usage: python benchmarks/sparse_coding/em_step.py [--points 1000] [--rounds 5] [--prosper FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch

from gossamer.domains.sparse_coding.anneal import Settings
from gossamer.domains.sparse_coding.bars import bars
from gossamer.domains.sparse_coding.discrete import DiscreteLinear
from gossamer.domains.sparse_coding.em import em_step
from gossamer.domains.sparse_coding.model import Batch
from gossamer.domains.sparse_coding.reducer import Reducer
from gossamer.domains.sparse_coding.states import StateSpace
from gossamer.domains.sparse_coding.truncation import binomial_moments

Array = np.ndarray
Params = tuple[Array, float, float]  # W (D, H), pi, sigma
Step = Callable[[Params, Array], Params]


def multi_states(candidates: int, active: int) -> Array:
    rows = [c for k in range(2, active + 1) for c in combinations(range(candidates), k)]
    states = np.zeros((len(rows), candidates))
    for row, subset in zip(states, rows, strict=True):
        row[list(subset)] = 1
    return states


def finish(pi: float, active: int, Wp: Array, Wq: Array, used: float, rest: float, N: int, D: int) -> Params:
    """The M-step from the sums; sigma is that of the old dictionary, as in the original."""
    H = len(Wp)
    A, B = binomial_moments(H, pi, active)
    return np.linalg.lstsq(Wq, Wp, rcond=None)[0].T, pi * A / B * used / N, float(np.sqrt(rest / N / D))


def pointwise(candidates: int, active: int) -> Step:
    SM = multi_states(candidates, active)
    size = SM.sum(1)

    def step(params: Params, Y: Array) -> Params:
        (W, pi, sigma), (N, D) = params, Y.shape
        W, H = W.T, params[0].shape[1]
        pre, odds = -0.5 / sigma**2, np.log(pi / (1 - pi))
        Wp, Wq, used, rest = np.zeros((H, D)), np.zeros((H, H)), 0.0, 0.0
        lengths = np.sqrt((W**2).sum(1))
        for y in Y:
            chosen = np.argsort(W @ y / lengths)[-candidates:]
            many = SM @ W[chosen]
            square = np.concatenate([[(y**2).sum()], ((W - y) ** 2).sum(1), ((many - y) ** 2).sum(1)])
            log = pre * square + np.concatenate([[0.0], np.full(H, odds), odds * size])
            q = np.exp(log - log.max())
            q /= q.sum()
            one, more = q[1 : H + 1], q[H + 1 :]
            Wp += np.outer(one, y)
            Wp[chosen] += np.outer(more @ SM, y)
            Wq[np.arange(H), np.arange(H)] += one
            Wq[np.ix_(chosen, chosen)] += (more * SM.T) @ SM
            used += one.sum() + more @ size
            rest += q @ square
        return finish(pi, active, Wp, Wq, used, rest, N, D)

    return step


def batched(candidates: int, active: int) -> Step:
    SM = multi_states(candidates, active)
    size = SM.sum(1)

    def step(params: Params, Y: Array) -> Params:
        (W, pi, sigma), (N, D) = params, Y.shape
        W, H = W.T, params[0].shape[1]
        pre, odds = -0.5 / sigma**2, np.log(pi / (1 - pi))
        chosen = np.argsort(Y @ W.T / np.sqrt((W**2).sum(1)), axis=1)[:, -candidates:]
        many = np.einsum("sc,ncd->nsd", SM, W[chosen], optimize=True)
        square = np.concatenate(
            [
                (Y**2).sum(1, keepdims=True),
                ((W[None] - Y[:, None]) ** 2).sum(2),
                ((many - Y[:, None]) ** 2).sum(2),
            ],
            1,
        )
        log = pre * square + np.concatenate([[0.0], np.full(H, odds), odds * size])
        q = np.exp(log - log.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        one, more = q[:, 1 : H + 1], q[:, H + 1 :]
        codes = one.copy()
        np.put_along_axis(codes, chosen, np.take_along_axis(one, chosen, 1) + more @ SM, 1)
        Wq = np.diag(one.sum(0))
        pairs = np.einsum("ns,sa,sb->nab", more, SM, SM, optimize=True)
        np.add.at(Wq, (chosen[:, :, None], chosen[:, None]), pairs)
        return finish(pi, active, codes.T @ Y, Wq, codes.sum(), (q * square).sum(), N, D)

    return step


def ours(units: int, candidates: int, active: int) -> Step:
    model = DiscreteLinear(StateSpace(units, candidates, active))

    def step(params: Params, Y: Array) -> Params:
        W, pi, sigma = params
        old = {
            "W": torch.from_numpy(W),
            "prior": torch.tensor([1 - pi, pi], dtype=torch.float64),
            "sigma": torch.tensor(sigma, dtype=torch.float64),
        }
        new = em_step(model, old, Batch(torch.from_numpy(Y)), Settings(), Reducer())[0]
        return new["W"].numpy(), float(new["prior"][1]), float(new["sigma"])

    return step


def original(folder: str, units: int, candidates: int, active: int, dimensions: int) -> Step:
    """The authors' step, from a checkout."""
    sys.path.insert(0, folder)
    for name, kind in (("int", int), ("bool", bool), ("float", float), ("str", str)):
        if name not in np.__dict__:
            setattr(np, name, kind)
    if importlib.util.find_spec("mpi4py") is None:
        sys.modules["mpi4py"] = _one_process()
    module = importlib.import_module("prosper.em.camodels.bsc_et")
    annealing = importlib.import_module("prosper.em.annealing").LinearAnnealing(10)
    annealing["T"] = [(0, 1.0), (1.0, 1.0)]
    model = module.BSC_ET(dimensions, units, candidates, active)

    def step(params: Params, Y: Array) -> Params:
        W, pi, sigma = params
        new = model.step(annealing, {"W": W, "pi": pi, "sigma": sigma}, {"y": Y})
        return new["W"], float(new["pi"]), float(new["sigma"])

    return step


def _one_process() -> types.ModuleType:
    """As much of mpi4py as one process uses."""

    class Alone:
        rank, size = 0, 1

        def allreduce(self, value: object, op: object = None) -> object:
            return value

        def Allreduce(self, source: list[Array], target: list[Array], op: object = None) -> None:  # noqa: N802
            target[0][...] = source[0]

        def Barrier(self) -> None:  # noqa: N802
            return None

        def bcast(self, value: object, root: int = 0) -> object:
            return value

    module = types.ModuleType("mpi4py")
    module.MPI = types.SimpleNamespace(COMM_WORLD=Alone(), DOUBLE=None, SUM=None, MAX=None, MIN=None)
    return module


def check(steps: dict[str, Step], params: Params, Y: Array) -> None:
    """All give the same W and pi, and the numpy versions the same sigma (ours is that of the new W)."""
    wanted = steps["pointwise numpy"](params, Y)
    for name, step in steps.items():
        W, pi, _ = step(params, Y)
        if not (np.allclose(W, wanted[0], atol=1e-6) and np.isclose(pi, wanted[1])):
            raise SystemExit(f"{name} computes another update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prosper", help="folder that holds the package prosper")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| side | H | H' | gamma | version | time / gossamer | least | most |\n|---|---|---|---|---|---|---|---|")
    for side, candidates, active in ((5, 8, 5), (8, 8, 4), (16, 8, 4)):
        data = bars(options.points, side=side, probabilities=(1 - 1 / side, 1 / side), seed=0)
        H = data.W.shape[1]
        # a little off the truth, all bars different, so that no candidate is chosen by a tie
        start = data.W + np.random.default_rng(1).normal(size=data.W.shape)
        params = (start, 1 / side, 2.5)
        steps = {
            "gossamer": ours(H, candidates, active),
            "pointwise numpy": pointwise(candidates, active),
            "batched numpy": batched(candidates, active),
        }
        if options.prosper:
            steps["prosper"] = original(options.prosper, H, candidates, active, side * side)
        few = data.Y[:50]
        # candidates are chosen by cosine there and by likelihood here: compared where all units are candidates
        check(
            {"pointwise numpy": pointwise(5, 3), "batched numpy": batched(5, 3), "gossamer": ours(5, 5, 3)},
            (start[:, :5], 0.3, 2.5),
            few,
        )
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                begun = time.perf_counter()
                step(params, data.Y)
                times[name].append(time.perf_counter() - begun)
        for name in list(steps)[1:]:
            ratios = [a / b for a, b in zip(times[name], times["gossamer"], strict=True)]
            print(
                f"| {side} | {H} | {candidates} | {active} | {name} | {statistics.median(ratios):.1f} "
                f"| {min(ratios):.1f} | {max(ratios):.1f} |"
            )


if __name__ == "__main__":
    main()
