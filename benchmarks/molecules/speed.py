"""A frozen sparse network against its dense self and a QHNet-like one: ratios of CPU time and memory, side by side.

    python benchmarks/molecules/speed.py [--rounds 7] [--channels 16] [--count 8]

Water dimers in def2-svp, lmax 4, one thread, rounds interleaved, medians. Memory: what one forward pass keeps for its
backward pass. The last table has the product of features alone, also against e3nn's own of all paths.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gossamer.domains.molecules import Layout, QHNet, Shape, SparseTensorProduct, SPHNet, ThreePhase, geometries
from gossamer.domains.molecules.graph import Graph, graph
from gossamer.domains.molecules.qhnet import E3nnProduct

LMAX = 4
Work = Callable[[], object]


def ratios(rounds: int, works: Mapping[str, Work]) -> dict[str, tuple[float, float, float]]:
    """CPU time of each over that of the first: median, least, most of the rounds; the first two rounds warm up."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 2):
        for name, work in works.items():
            began = time.process_time()
            work()
            if turn > 1:
                spent[name].append(time.process_time() - began)
    first = spent[next(iter(works))]
    each = {name: [a / b for a, b in zip(times, first, strict=True)] for name, times in spent.items()}
    return {name: (median(found), min(found), max(found)) for name, found in each.items()}


def kept_bytes(work: Work) -> int:
    """Bytes that `work` saves for a backward pass, shared storage once."""
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        held = work()  # alive until the end, so that no address is used twice
    del held
    return sum(seen.values())


def networks(layout: Layout, channels: int) -> dict[str, Any]:
    """All with two pair layers."""
    sparse = SPHNet(layout, Shape(LMAX, channels, 2, sparsity=0.7))
    ThreePhase().step(sparse, 1, 4)
    return {
        "SPHNet, frozen at 70 %": sparse.freeze(),
        "SPHNet, dense": SPHNet(layout, Shape(LMAX, channels, 2, sparsity=0.0)),
        "QHNet-like, dense": QHNet(layout, LMAX, channels),
    }


def learn(model: Any, batch: Graph) -> Tensor:
    """One forward and backward pass."""
    found = model(batch)
    loss: Tensor = found.diagonal.abs().sum() + found.pairs.abs().sum()
    loss.backward()
    return loss


def products(channels: int, n: int) -> dict[str, Work]:
    """The product of features alone."""
    product = SparseTensorProduct(LMAX, sparsity=0.7)
    product.gate.advance("adaptive")
    dense = SparseTensorProduct(LMAX, sparsity=0.0).freeze()
    x = torch.randn(n, channels, (LMAX + 1) ** 2)
    works: dict[str, Work] = {}
    named = (("frozen at 70 %", product.freeze()), ("dense", dense), ("e3nn, dense", E3nnProduct(LMAX, channels)))
    for name, module in named:
        weights = torch.randn(n, len(module.paths), channels)
        works[name] = torch.no_grad()(lambda module=module, weights=weights: module(x, x, weights))
    return works


def main() -> None:
    """Print one table of networks and one of products."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # e3nn uses deprecated parts of torch
    layout = Layout("def2-svp", (1, 8))
    batch = graph(geometries("water-dimer", options.count), layout)
    found = networks(layout, options.channels)
    inference = ratios(options.rounds, {n: torch.no_grad()(lambda m=m: m(batch)) for n, m in found.items()})
    training = ratios(options.rounds, {n: lambda m=m: learn(m, batch) for n, m in found.items()})
    memory = {n: kept_bytes(lambda m=m: m(batch)) for n, m in found.items()}
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in found.items()}
    first = next(iter(found))
    print(
        f"{options.count} water dimers, {options.channels} channels; all over `{first}`; least and most of the rounds\n"
    )
    print("| network | inference | training step | memory for backward | parameters |\n|---|---|---|---|---|")
    for name in found:
        times = [f"{m:.1f} ({low:.1f}-{high:.1f})" for m, low, high in (inference[name], training[name])]
        memories, parameters = (held[name] / held[first] for held in (memory, sizes))
        print(f"| {name} | {times[0]} | {times[1]} | {memories:.1f} | {parameters:.1f} |")
    print("\n| product of features | time |\n|---|---|")
    for name, (m, low, high) in ratios(options.rounds, products(options.channels, 384)).items():
        print(f"| {name} | {m:.1f} ({low:.1f}-{high:.1f}) |")


if __name__ == "__main__":
    main()
