"""What fewer edges save: time of message passing and of whole epochs on the whole graph / on the cut one.

Side by side in one process, one thread, rounds interleaved; medians of ratios. A message pass by gather and
scatter (as without a sparse matrix) stands beside ours.
Usage: python benchmarks/graphs/message_passing.py [--nodes 20000] [--degree 20] [--width 64] [--keep 0.36] [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.domains.graphs import block_model, gcn, sparsify_edges
from gossamer.domains.graphs.networks import Edges


def scatter(edges: Edges, weight: Tensor, h: Tensor) -> Tensor:
    """Gather, multiply, add up at the targets."""
    index = edges.target[:, None].expand(-1, h.shape[1])
    return torch.zeros_like(h).scatter_add_(0, index, h[edges.source] * weight[:, None])


def ratios(rounds: int, slow: Callable[[], object], fast: Callable[[], object]) -> list[float]:
    """Time of the first / time of the second, once a round, after one warm-up."""
    found = []
    for turn in range(rounds + 1):
        seconds = []
        for call in (slow, fast):
            begun = time.process_time()
            call()
            seconds.append(time.process_time() - begun)
        if turn:
            found.append(seconds[0] / seconds[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=20000)
    parser.add_argument("--degree", type=float, default=20.0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--keep", type=float, default=0.36)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    graph = block_model(options.nodes, 5, degree=options.degree, words=50, seed=0)
    few = sparsify_edges(graph.edge_index, options.keep, num_nodes=options.nodes)
    h = torch.randn(options.nodes, options.width)
    whole, cut = (Edges(e, options.nodes, loops=True) for e in (graph.edge_index, few))
    ones = {edges: torch.ones(len(edges.source)) for edges in (whole, cut)}
    # each network keeps the edges it saw last, so each graph gets one of its own
    nets = {"whole": gcn(50, 5, hidden=options.width), "cut": gcn(50, 5, hidden=options.width)}

    def step(name: str, edge_index: Tensor) -> None:
        nets[name].zero_grad()
        nets[name](graph.x, edge_index).logsumexp(1).mean().backward()

    rows = {
        "message pass, whole / cut graph": ratios(
            options.rounds, lambda: whole.structure.matmul(ones[whole], h), lambda: cut.structure.matmul(ones[cut], h)
        ),
        "training step, whole / cut graph": ratios(
            options.rounds, lambda: step("whole", graph.edge_index), lambda: step("cut", few)
        ),
        "message pass on the cut graph, scatter / ours": ratios(
            options.rounds, lambda: scatter(cut, ones[cut], h), lambda: cut.structure.matmul(ones[cut], h)
        ),
    }
    print(f"{graph.edge_index.shape[1]} entries, {few.shape[1]} kept, {options.nodes} nodes, width {options.width}")
    print("| | ratio | least | most |\n|---|---|---|---|")
    for name, found in rows.items():
        print(f"| {name} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main()
