"""Whole networks as plans against dense peers, each in its best setting, at several sparsities.

    python benchmarks/execution/networks.py [--network mobilenet-v1] [--sparsity 70 80 90] [--threads 1] [--out x.md]

All candidates run interleaved in one process; a time is the least of at least 15 runs: processor time with one
thread, wall time with more. Plans are called as users call them, `plan(x)`, whatever they chose to run. Each output is
compared with torch before it counts. Weights are random with trained-looking batch statistics; convolutions other than
depthwise ones and the first are pruned by magnitude, unstructured or (b4) in blocks of 4 output channels. Peers run the
dense network (torch.compile where it finds a C++ compiler); those in bf16 are shown for comparison, the ratio is over
the best in fp32. Plans "bf16" may round layers to bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from functools import partial
from pathlib import Path

if "--threads" not in sys.argv:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import gossamer
from gossamer.claims import dense_peers as peers
from gossamer.engine import tune
from gossamer.kernels import native
from gossamer.models.zoo import build

NETWORKS = {"mobilenet-digits": (1, 16, 16), "mobilenet-v1": (3, 224, 224), "resnet-50": (3, 224, 224)}
LEAST = 15


def trained_looking(name: str) -> nn.Module:
    """Random weights and statistics that keep activations alive."""
    torch.manual_seed(0)
    model = build(name, shape=NETWORKS[name]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
    return model


def prune(model: nn.Module, sparsity: float, block: int) -> nn.Module:
    """A copy with the smallest blocks x 1 of each wide layer zeroed."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels > 3:
            weight = module.weight.data
            scores = weight.flatten(1).unflatten(0, (-1, block)).abs().sum(1)
            limit = scores.flatten().kthvalue(round(sparsity * scores.numel())).values
            weight *= (scores > limit).repeat_interleave(block, 0).view_as(weight)
    return model


@torch.no_grad()
def by_inductor(model: nn.Module, x: torch.Tensor) -> dict[str, peers.Run]:
    """torch.compile in both memory orders; nothing where it finds no compiler of its own."""
    found: dict[str, peers.Run] = {}
    for name, order in (("torch.compile", None), ("torch.compile channels_last", torch.channels_last)):
        given = x if order is None else x.to(memory_format=order)
        copied = copy.deepcopy(model) if order is None else copy.deepcopy(model).to(memory_format=order)
        run = partial(torch.compile(copied), given)
        try:
            run()
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}", file=sys.stderr)
        else:
            found[name] = run
    return found


@torch.no_grad()
def compare(name: str, sparsities: list[int], threads: int) -> list[str]:
    """Rows of the table."""
    model, x = trained_looking(name), torch.randn(1, *NETWORKS[name])
    full, half = peers.network(model, x, threads, low=True)
    full |= by_inductor(model, x)
    wanted = model(x).double()
    for peer, run in (full | half).items():
        peers.check(run, wanted, peer, 0.2 if peer in half else 1e-3)
    runs, how = full | half, dict.fromkeys(full | half, "")
    for sparsity, block in [(0, 1), *((s, b) for s in sparsities for b in (1, 4))]:
        pruned = prune(model, sparsity / 100, block) if sparsity else model
        for precision, most in (("float32", 1e-4), ("bfloat16", 0.1)):
            plan = gossamer.compile(pruned, x, threads=threads, precision=precision)
            label = f"plan {sparsity} %{' b4' if block == 4 else ''}{' bf16' if precision == 'bfloat16' else ''}"
            runs[label], how[label] = partial(plan, x), plan.report().runs
            peers.check(runs[label], pruned(x).double(), label, most)
    times = tune.race(runs, threads, least=LEAST)
    best = min(full, key=lambda peer: times[peer])
    rows = []
    for label, ms in times.items():
        ratios = f"{times[best] / ms:.2f} | {times['torch eager'] / ms:.2f}"
        rows.append(f"| {name} | {label} | {how[label]} | {ratios} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=["mobilenet-digits", "mobilenet-v1"], choices=list(NETWORKS))
    parser.add_argument("--sparsity", nargs="+", type=int, default=[70, 80, 90])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tune.RACE_SECONDS = 2.0
    lines = [
        f"{arguments.threads} thread(s), level {native.level()}, batch 1, fp32.",
        "",
        "| network | how | chosen by the plan | over best dense peer | over torch eager |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.network:
        lines += compare(name, arguments.sparsity, arguments.threads)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
