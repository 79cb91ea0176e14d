"""Forward and backward of sparse 1x1 convolutions against torch's, contiguous and channels_last.

    python benchmarks/execution/training_conv.py [--threads 1] [--out FILE.md]

All in turns in one process; a time is the best of 12 slices (processor time with one thread, wall time with more). A
figure is the faster dense form over the sparse one; random masks.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import side_by_side as sides
import torch
from torch import Tensor, nn

from gossamer.engine.sparse_layer import SparseConv1x1

SHAPES = ((64, 128, 16, 32), (128, 128, 16, 32), (256, 256, 8, 32), (512, 512, 7, 32), (128, 256, 14, 16))
SPARSITIES = (70, 80, 90, 95)


def step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    x.grad = None
    layer.zero_grad()
    layer(x).backward(gradient)


def row(columns: int, rows: int, side: int, images: int, threads: int) -> str:
    """One line of the table."""
    torch.manual_seed(columns)
    x, gradient = torch.randn(images, columns, side, side), torch.randn(images, rows, side, side)
    runs: dict[str, sides.Run] = {}
    for name, order in (("dense", torch.contiguous_format), ("channels_last", torch.channels_last)):
        layer = nn.Conv2d(columns, rows, 1).to(memory_format=order)  # type: ignore[call-overload]
        given = x.to(memory_format=order).requires_grad_()
        runs[name] = partial(step, layer, given, gradient.to(memory_format=order))
    for sparsity in SPARSITIES:
        layer = nn.Conv2d(columns, rows, 1)
        mask = torch.rand_like(layer.weight) >= sparsity / 100
        layer.weight.data *= mask
        wanted, sparse = layer(x), SparseConv1x1(layer, mask)
        torch.testing.assert_close(sparse(x), wanted, rtol=1e-4, atol=1e-4)
        runs[f"{sparsity} %"] = partial(step, sparse, x.clone().requires_grad_(), gradient)
    times = sides.seconds(runs, threads)
    dense = min(times["dense"], times["channels_last"])
    figures = " | ".join(f"{dense / times[f'{sparsity} %']:.1f}" for sparsity in SPARSITIES)
    return f"| {columns}, {rows}, {images} x {side} x {side} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [f"| in, out, pixels | {' | '.join(f'{s} %' for s in SPARSITIES)} |", "|---" * (1 + len(SPARSITIES)) + "|"]
    print("\n".join(lines))
    for shape in SHAPES:
        lines.append(row(*shape, options.threads))
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
