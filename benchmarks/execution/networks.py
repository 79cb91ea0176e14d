"""Whole networks as plans against dense peers, each in its best setting, at several sparsities.

    python benchmarks/execution/networks.py [--network mobilenet-v1] [--sparsity 70 80 90] [--threads 1] [--out x.md]

All candidates run interleaved in one process; a time is the least of at least 15 runs: processor time with one
thread, wall time with more. Each peer's output is compared with torch before it counts. Weights are random with
trained-looking batch statistics; convolutions other than depthwise ones and the first are pruned by magnitude,
unstructured or (b4) in blocks of 4 output channels. Peers run the dense network; those in
bf16 are shown for comparison, the ratio is over the best in fp32.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path

if "--threads" not in sys.argv:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import side_by_side as sides
import torch
from torch import Tensor, nn

import gossamer
from gossamer.engine import onnx, tune
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


def dense_peers(model: nn.Module, x: Tensor, threads: int) -> dict[str, Callable[[], Tensor]]:
    """Every runtime at hand, in fp32 and in bf16."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.to(memory_format=torch.channels_last)
    peers: dict[str, Callable[[], Tensor]] = {
        "torch eager": lambda: model(x),
        "torch channels_last": lambda: last(x_last),
    }
    half, x_half = copy.deepcopy(last).bfloat16(), x_last.bfloat16()
    peers["torch bf16"] = lambda: half(x_half)
    if sides.has("onnx", "onnxruntime"):
        session = onnx.session(onnx.to_bytes(model, x), threads)
        peers["onnxruntime"] = lambda: torch.from_numpy(session(x))
    if sides.has("onnx", "openvino"):
        for name, precision in (("openvino", "f32"), ("openvino bf16", "bf16")):
            run = openvino_peer(onnx.to_bytes(model, x), x, threads, precision)
            peers[name] = run
    wanted = model(x)
    for name, run in peers.items():
        sides.check(run, wanted.double(), name, 0.2 if "bf16" in name else 1e-3)
    return peers


def openvino_peer(data: bytes, x: Tensor, threads: int, precision: str) -> Callable[[], Tensor]:
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(data), "CPU", hints)
    return lambda: torch.from_numpy(compiled([x.numpy()])[0])


@torch.no_grad()
def compare(name: str, sparsities: list[int], threads: int) -> list[str]:
    """Rows of the table."""
    model, x = trained_looking(name), torch.randn(1, *NETWORKS[name])
    runners: dict[str, Callable[[], object]] = dict(dense_peers(model, x, threads))
    peers = [peer for peer in runners if "bf16" not in peer]
    for sparsity, block in [(0, 1), *((s, b) for s in sparsities for b in (1, 4))]:
        pruned = prune(model, sparsity / 100, block) if sparsity else model
        plan = gossamer.compile(pruned, x, threads=threads)
        wanted = pruned(x)
        assert torch.allclose(plan(x), wanted, atol=1e-4 * float(wanted.abs().max()))
        label = f"plan {sparsity} %" + (" b4" if block == 4 else "")
        runners[label] = lambda plan=plan: plan._fast(x, threads)  # type: ignore[misc]
        print(f"{name} {label}: runs {plan.report().runs}", flush=True)
    times = tune.race(runners, threads, least=LEAST)
    best = min(peers, key=lambda peer: times[peer])
    rows = []
    for label, ms in times.items():
        rows.append(f"| {name} | {label} | {ms:.3f} | {times[best] / ms:.2f} | {times['torch eager'] / ms:.2f} |")
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
        "| network | how | ms | over best dense peer | over torch eager |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.network:
        lines += compare(name, arguments.sparsity, arguments.threads)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
