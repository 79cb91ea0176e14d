"""Sparse 1 x 1 convolutions against dense and sparse peers, on the layer shapes of MobileNetV1.

    python benchmarks/execution/layers.py [--sparsity 70 90] [--out layers.md]

One thread. All candidates of a shape run interleaved in one process; a time is the process CPU time of the best of
12 slices of about 3 ms, and each result is compared with float64 before it counts. Weights are random, pruned to
the asked sparsity exactly. Printed: the speed-up over the fastest fp32 dense peer of that shape.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import native
from gossamer.kernels.formats import matrix, pack_block, pack_csr_panel
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
SLICES, SLICE_SECONDS = 12, 3e-3
Run = Callable[[], object]


def prune(weight: Tensor, sparsity: int, block: int) -> Tensor:
    """Random blocks of rows x 1 zeroed, exactly to the sparsity (rounded to a block)."""
    strips, columns = weight.shape[0] // block, weight.shape[1]
    cells = torch.zeros(strips * columns, dtype=torch.bool)
    kept = round(strips * columns * (1 - sparsity / 100))
    cells[torch.randperm(len(cells))[:kept]] = True
    return weight * cells.view(strips, columns).repeat_interleave(block, 0)


def dense_peers(weight: Tensor, x: Tensor, side: int) -> dict[str, Run]:
    """Every fp32 dense implementation at hand, each in its best setting."""
    image, kernel = x.view(1, -1, side, side), weight.view(*weight.shape, 1, 1)
    last, kernel_last = (t.contiguous(memory_format=torch.channels_last) for t in (image, kernel))
    out = torch.empty(weight.shape[0], x.shape[1])
    peers: dict[str, Run] = {
        "torch.mm": lambda: torch.mm(weight, x, out=out),
        "torch conv": lambda: F.conv2d(image, kernel),
        "torch channels_last": lambda: F.conv2d(last, kernel_last),
    }
    for package, build in (("onnxruntime", onnxruntime_peer), ("openvino", openvino_peer)):
        if importlib.util.find_spec(package) and importlib.util.find_spec("onnx"):
            peers[package] = build(weight, image)
    return peers


def onnx_model(weight: Tensor, image: Tensor) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])
    shape_in, shape_out = list(image.shape), [1, weight.shape[0], *image.shape[2:]]
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(weight.view(*weight.shape, 1, 1).numpy(), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def onnxruntime_peer(weight: Tensor, image: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_model(weight, image), options, providers=["CPUExecutionProvider"])
    feed = {"x": image.numpy()}
    return lambda: session.run(None, feed)[0]


def openvino_peer(weight: Tensor, image: Tensor) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(onnx_model(weight, image), b"")
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(image.numpy(), shared_memory=True))

    def run() -> object:
        request.infer()
        return request.get_output_tensor().data

    return run


def sparse_peers(weight: Tensor, x: Tensor) -> dict[str, Run]:
    scipy_csr, torch_csr, array = scipy.sparse.csr_matrix(weight.numpy()), weight.to_sparse_csr(), x.numpy()
    return {"scipy csr": lambda: scipy_csr @ array, "torch csr": lambda: torch_csr @ x}


def ours(weight: Tensor, x: Tensor, block: int) -> Run:
    """The kernel as a compiled plan calls it: into memory that is there already, as torch.mm's `out`."""
    packed = pack_csr_panel(weight, pixels=x.shape[1]) if block == 1 else pack_block(weight, block)
    out, extension = torch.empty(weight.shape[0], x.shape[1]), native.extension()
    if extension is None:
        return lambda: spmm(packed, x)
    shape = (1, x.shape[0], 1, x.shape[1], 1, 1, 1, 1, 0, 0, 1, 1)
    block_matrix, pointers = matrix(extension, packed), (x.data_ptr(), out.data_ptr())

    def run(keep: object = packed) -> Tensor:
        extension.conv(block_matrix, shape, *pointers, 0, 0, 0, 1)
        return out

    return run


def check(run: Run, expected: Tensor, name: str) -> None:
    got = torch.as_tensor(np.asarray(run())).reshape(expected.shape)
    error = float((got.double() - expected).abs().max() / expected.abs().max())
    if not error < 1e-4:
        raise SystemExit(f"{name} is wrong: relative error {error:.1e}")


def seconds(runs: dict[str, Run]) -> dict[str, float]:
    """Best CPU seconds of a call, interleaved."""
    calls = {}
    for name, run in runs.items():
        run()
        start = time.process_time()
        run()
        run()
        calls[name] = max(1, round(2 * SLICE_SECONDS / max(time.process_time() - start, 1e-6)))
    best = dict.fromkeys(runs, math.inf)
    for _ in range(SLICES):
        for name, run in runs.items():
            start = time.process_time()
            for _ in range(calls[name]):
                run()
            best[name] = min(best[name], (time.process_time() - start) / calls[name])
    return best


def measure(shape: tuple[int, int, int], sparsity: int) -> tuple[dict[str, float], str, float]:
    """Speed-ups over the best dense peer, its name and its GFLOP/s."""
    columns, rows, side = shape
    torch.manual_seed(columns + sparsity)
    weight, x = torch.randn(rows, columns), torch.randn(columns, side * side)
    dense, sparse = dense_peers(weight, x, side), {}
    for run_name, run in dense.items():
        check(run, weight.double() @ x.double(), run_name)
    for name, block in (("unstructured", 1), ("block 4", 4), ("block 8", 8), ("block 16", 16)):
        pruned = prune(weight, sparsity, block)
        candidates = {name: ours(pruned, x, block)}
        if block == 1:
            candidates |= sparse_peers(pruned, x)
        for run_name, run in candidates.items():
            check(run, pruned.double() @ x.double(), run_name)
        sparse |= candidates
    times = seconds(dense | sparse)
    best = min(dense, key=times.__getitem__)
    flops = 2 * rows * columns * side * side
    return {name: times[best] / times[name] for name in sparse}, best, flops / times[best] / 1e9


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def tables(sparsities: list[int]) -> Iterator[str]:
    """A Markdown table for each sparsity, line by line."""
    for sparsity in sparsities:
        yield f"\n### {sparsity} % of the weights are zero\n"
        results = []
        for shape in SHAPES:
            speedups, best, rate = measure(shape, sparsity)
            if not results:
                yield f"| in, out, pixels | best dense fp32 | {' | '.join(speedups)} |"
                yield "|---" * (2 + len(speedups)) + "|"
            results.append((shape, speedups))
            cells = " | ".join(f"{value:.2f}" for value in speedups.values())
            yield f"| {shape[0]}, {shape[1]}, {shape[2]}x{shape[2]} | {best}, {rate:.0f} GF/s | {cells} |"
        wide = [speedups for shape, speedups in results if shape[0] >= 128]
        for label, reduce in (("geometric mean", geometric_mean), ("best", max), ("worst", min)):
            cells = " | ".join(f"**{reduce([s[name] for s in wide]):.2f}**" for name in wide[0])
            yield f"| {label}, in >= 128 | | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="+", default=list(SPARSITIES), help="in percent")
    parser.add_argument("--out", type=Path, help="write the Markdown here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    lines = [f"Speed-up over the best dense fp32 peer, one thread, level `{native.level()}`."]
    print(lines[0])
    with torch.inference_mode():
        for line in tables(options.sparsity):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
