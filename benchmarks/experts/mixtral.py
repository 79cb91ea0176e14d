"""One expert layer, forward and backward, against transformers' Mixtral block with the same weights, in one process.

python benchmarks/experts/mixtral.py [--width 64 --hidden 128 --experts 8 --tokens 512 --rounds 20]
Prints the median of theirs / ours for each of their backends and our dispatches; above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from gossamer.experts import Experts, MoE, TopK


def blocks(width: int, hidden: int, experts: int) -> tuple[nn.Module, MoE]:
    """Both layers with the same weights."""
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=width, intermediate_size=hidden, num_local_experts=experts, num_experts_per_tok=2
    )
    theirs = MixtralSparseMoeBlock(config)
    ours = MoE(Experts(experts, width, hidden, nn.SiLU(), gated=True, bias=False), TopK(2))
    pairs = (
        (theirs.gate.weight, ours.gate.weight),
        (theirs.experts.gate_up_proj, ours.experts.up),
        (theirs.experts.down_proj, ours.experts.down),
    )
    for a, b in pairs:
        nn.init.normal_(a, std=0.1)
        b.data.copy_(a.data)
    return theirs, ours


def seconds(block: nn.Module, x: torch.Tensor) -> float:
    """Processor time of one forward and backward pass."""
    block.zero_grad()
    started = time.process_time()
    block(x).sum().backward()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("width", 64), ("hidden", 128), ("experts", 8), ("tokens", 512), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs, ours = blocks(given.width, given.hidden, given.experts)
    x = torch.randn(1, given.tokens, given.width)
    print(f"threads {torch.get_num_threads()}, {vars(given)}")
    for backend in ("eager", "grouped_mm"):
        theirs.experts.config._experts_implementation = backend
        gap = float((theirs(x) - ours(x)).detach().abs().max())
        ratios = []
        for _ in range(given.rounds + 2):
            one, two = seconds(theirs, x), seconds(ours, x)
            ratios.append(one / two)
        kept = sorted(ratios[2:])
        middle, low, high = statistics.median(kept), kept[len(kept) // 4], kept[-len(kept) // 4]
        print(
            f"{backend:>12}: theirs / ours {middle:.2f} (middle half {low:.2f} to {high:.2f}), outputs {gap:.1e} apart"
        )


if __name__ == "__main__":
    main()
