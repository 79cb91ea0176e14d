"""Sparse 1 x 1 convolutions against dense and sparse peers, on the layer shapes of MobileNetV1.

    python benchmarks/execution/layers.py [--sparsity 70 90] [--threads 1] [--out layers.md]

All candidates of a shape run in turns in one process; a time is the best of 12 slices of about 3 ms (processor time
with one thread, wall time with more), and each result is compared with float64 before it counts. Weights are random,
pruned to the asked sparsity exactly. Printed: the speed-up over the fastest fp32 dense peer of that shape. "ours bf16"
rounds weights and inputs to bfloat16; "torch bf16" and "openvino bf16" are dense. A dash: the code would be too long.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import scipy.sparse
import side_by_side as sides
import torch
from torch import Tensor

from gossamer.claims import dense_peers as peers
from gossamer.claims.dense_peers import Run
from gossamer.kernels import native
from gossamer.kernels.formats import PackedWeight, machine_code, matrix
from gossamer.kernels.pack import pack_bf16, pack_block, pack_csr_code, pack_csr_panel

# (in, out, height = width) of the 1 x 1 convolutions of MobileNetV1 at 224 pixels
SHAPES = (
    (32, 64, 112),
    (64, 128, 56),
    (128, 128, 56),
    (128, 256, 28),
    (256, 256, 28),
    (256, 512, 14),
    (512, 512, 14),
    (512, 1024, 7),
    (1024, 1024, 7),
)
SPARSITIES = (30, 50, 70, 80, 90, 95)


def sparse_peers(weight: Tensor, x: Tensor) -> dict[str, Run]:
    scipy_csr, torch_csr, array = scipy.sparse.csr_matrix(weight.numpy()), weight.to_sparse_csr(), x.numpy()
    return {"scipy csr": lambda: scipy_csr @ array, "torch csr": lambda: torch_csr @ x}


def as_code(weight: Tensor) -> PackedWeight | None:
    """Machine code for the pattern, where it can be made and is not too long."""
    packed, extension = pack_csr_code(weight), native.extension()
    return packed if machine_code(extension, packed, matrix(extension, packed)) is not None else None


def candidates(weight: Tensor, x: Tensor, sparsity: int, threads: int) -> Iterator[tuple[str, Run, Tensor]]:
    """Name, run and exact result of everything sparse."""
    for name, block in (("unstructured", 1), ("block 4", 4), ("block 8", 8), ("block 16", 16)):
        pruned = sides.prune(weight, sparsity, block)
        expected = pruned.double() @ x.double()
        if block > 1:
            yield name, peers.sparse_convolution(pack_block(pruned, block), x, threads), expected
            if block == 4:
                yield "ours bf16, block 4", peers.sparse_convolution(pack_bf16(pruned, 4), x, threads), expected
            continue
        yield name, peers.sparse_convolution(pack_csr_panel(pruned, pixels=x.shape[1]), x, threads), expected
        yield "ours bf16", peers.sparse_convolution(pack_bf16(pruned), x, threads), expected
        if (code := as_code(pruned)) is not None:
            yield "as code", peers.sparse_convolution(code, x, threads), expected
        for peer, run in sparse_peers(pruned, x).items():
            yield peer, run, expected


def measure(shape: tuple[int, int, int], sparsity: int, threads: int) -> tuple[dict[str, float], str]:
    """Speed-ups over the best fp32 dense peer, and its name."""
    columns, rows, side = shape
    torch.manual_seed(columns + sparsity)
    weight, x = torch.randn(rows, columns), torch.randn(columns, side * side)
    full, half = peers.convolution(weight, x, side, threads, low=True)
    for name, run in (full | half).items():
        peers.check(run, weight.double() @ x.double(), name, 5e-2 if name in half else 1e-4)
    sparse = {}
    for name, run, expected in candidates(weight, x, sparsity, threads):
        peers.check(run, expected, name, 5e-2 if "bf16" in name else 1e-4)
        sparse[name] = run
    times = sides.seconds(full | sparse | half, threads)
    best = min(full, key=times.__getitem__)
    return {name: times[best] / times[name] for name in sparse | half}, best


def tables(sparsities: list[int], threads: int) -> Iterator[str]:
    """A Markdown table for each sparsity, line by line."""
    for sparsity in sparsities:
        yield f"\n### {sparsity} % of the weights are zero\n"
        results = []
        for shape in SHAPES:
            speedups, best = measure(shape, sparsity, threads)
            if not results:
                columns = list(speedups)
                yield f"| in, out, pixels | best dense fp32 | {' | '.join(columns)} |"
                yield "|---" * (2 + len(columns)) + "|"
            results.append((shape, speedups))
            yield f"| {shape[0]}, {shape[1]}, {shape[2]}x{shape[2]} | {best} | {sides.cells(speedups, columns)} |"
        wide = [speedups for shape, speedups in results if shape[0] >= 128]
        for label, row in sides.summary(wide).items():
            yield f"| {label}, in >= 128 | | {sides.cells(row, columns, '**')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="+", default=list(SPARSITIES), help="in percent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the Markdown here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    lines = [f"Speed-up over the best dense fp32 peer, {options.threads} thread(s), level `{native.level()}`."]
    print(lines[0])
    with torch.inference_mode():
        for line in tables(options.sparsity, options.threads):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
