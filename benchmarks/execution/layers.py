"""Sparse 1 x 1 convolutions against dense and sparse peers, on the layer shapes of MobileNetV1.

    python benchmarks/execution/layers.py [--sparsity 70 90] [--threads 1] [--out layers.md]

All candidates of a shape run in turns in one process; a time is the best of 12 slices of about 3 ms (processor time
with one thread, wall time with more), and each result is compared with float64 before it counts. Weights are random,
pruned to the asked sparsity exactly. Printed: the speed-up over the fastest fp32 dense peer of that shape; the columns
that end in bf16 are dense peers of lower precision, for comparison.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import scipy.sparse
import side_by_side as sides
import torch
from side_by_side import Run
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import native
from gossamer.kernels.formats import PackedWeight, machine_code, matrix, pack_block, pack_csr_code, pack_csr_panel
from gossamer.kernels.spmm import spmm

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


def dense_peers(weight: Tensor, x: Tensor, side: int, threads: int) -> tuple[dict[str, Run], dict[str, Run]]:
    """Every dense implementation at hand, each in its best setting: in fp32, and in bf16."""
    image, kernel = x.view(1, -1, side, side), weight.view(*weight.shape, 1, 1)
    last, kernel_last = (t.contiguous(memory_format=torch.channels_last) for t in (image, kernel))
    last16, kernel16 = last.bfloat16(), kernel_last.bfloat16()
    out = torch.empty(weight.shape[0], x.shape[1])
    full: dict[str, Run] = {
        "torch.mm": lambda: torch.mm(weight, x, out=out),
        "torch conv": lambda: F.conv2d(image, kernel),
        "torch channels_last": lambda: F.conv2d(last, kernel_last),
    }
    half: dict[str, Run] = {"torch bf16": lambda: F.conv2d(last16, kernel16)}
    if sides.has("onnx"):
        shape = (1, weight.shape[0], side, side)
        model = sides.onnx_node("Conv", kernel.numpy(), image, shape, kernel_shape=[1, 1])
        feed = {"x": image.numpy()}
        if sides.has("onnxruntime"):
            full["onnxruntime"] = sides.onnxruntime_run(model, feed, threads)
        if sides.has("openvino"):
            full["openvino"] = sides.openvino_run(model, feed, threads)
            half["openvino bf16"] = sides.openvino_run(model, feed, threads, "bf16")
    return full, half


def sparse_peers(weight: Tensor, x: Tensor) -> dict[str, Run]:
    scipy_csr, torch_csr, array = scipy.sparse.csr_matrix(weight.numpy()), weight.to_sparse_csr(), x.numpy()
    return {"scipy csr": lambda: scipy_csr @ array, "torch csr": lambda: torch_csr @ x}


def as_code(weight: Tensor) -> PackedWeight:
    """Machine code for the pattern, or no benchmark of it."""
    packed, extension = pack_csr_code(weight), native.extension()
    if extension is not None and machine_code(extension, packed, matrix(extension, packed)) is None:
        raise SystemExit("no machine code can be made here")
    return packed


def ours(packed: PackedWeight, x: Tensor) -> Run:
    """The kernel as a compiled plan calls it: into memory that is there already, as torch.mm's `out`."""
    out, extension = torch.empty(packed.rows, x.shape[1]), native.extension()
    if extension is None:
        return lambda: spmm(packed, x)
    shape = (1, x.shape[0], 1, x.shape[1], 1, 1, 1, 1, 0, 0, 1, 1)
    block_matrix, pointers = matrix(extension, packed), (x.data_ptr(), out.data_ptr())

    def run(keep: object = packed) -> Tensor:
        extension.conv(block_matrix, shape, *pointers, 0, 0, 0, native.threads())
        return out

    return run


def candidates(weight: Tensor, x: Tensor, sparsity: int) -> Iterator[tuple[str, Run, Tensor]]:
    """Name, run and exact result of everything sparse."""
    for name, block in (("unstructured", 1), ("block 4", 4), ("block 8", 8), ("block 16", 16)):
        pruned = sides.prune(weight, sparsity, block)
        expected = pruned.double() @ x.double()
        if block > 1:
            yield name, ours(pack_block(pruned, block), x), expected
            continue
        yield name, ours(pack_csr_panel(pruned, pixels=x.shape[1]), x), expected
        if native.level() == "avx512":
            yield "as code", ours(as_code(pruned), x), expected
        for peer, run in sparse_peers(pruned, x).items():
            yield peer, run, expected


def measure(shape: tuple[int, int, int], sparsity: int, threads: int) -> tuple[dict[str, float], str, float]:
    """Speed-ups over the best fp32 dense peer, its name and its GFLOP/s."""
    columns, rows, side = shape
    torch.manual_seed(columns + sparsity)
    weight, x = torch.randn(rows, columns), torch.randn(columns, side * side)
    full, half = dense_peers(weight, x, side, threads)
    for name, run in (full | half).items():
        sides.check(run, weight.double() @ x.double(), name, 5e-2 if name in half else 1e-4)
    sparse = {}
    for name, run, expected in candidates(weight, x, sparsity):
        sides.check(run, expected, name)
        sparse[name] = run
    times = sides.seconds(full | sparse | half, threads)
    best = min(full, key=times.__getitem__)
    flops = 2 * rows * columns * side * side
    return {name: times[best] / times[name] for name in sparse | half}, best, flops / times[best] / 1e9


def tables(sparsities: list[int], threads: int) -> Iterator[str]:
    """A Markdown table for each sparsity, line by line."""
    for sparsity in sparsities:
        yield f"\n### {sparsity} % of the weights are zero\n"
        results = []
        for shape in SHAPES:
            speedups, best, _ = measure(shape, sparsity, threads)
            if not results:
                yield f"| in, out, pixels | best dense fp32 | {' | '.join(speedups)} |"
                yield "|---" * (2 + len(speedups)) + "|"
            results.append((shape, speedups))
            cells = " | ".join(f"{value:.2f}" for value in speedups.values())
            yield f"| {shape[0]}, {shape[1]}, {shape[2]}x{shape[2]} | {best} | {cells} |"
        wide = [speedups for shape, speedups in results if shape[0] >= 128]
        for label, row in sides.summary(wide).items():
            cells = " | ".join(f"**{value:.2f}**" for value in row.values())
            yield f"| {label}, in >= 128 | | {cells} |"


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
