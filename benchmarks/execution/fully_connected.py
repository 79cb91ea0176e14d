"""Sparse fully connected layers against dense and sparse peers, at batch 1, batch 32 and 128 tokens.

    python benchmarks/execution/fully_connected.py [--sparsity 50 90] [--threads 1] [--out fully_connected.md]

As layers.py measures. Printed: the speed-up over the fastest fp32 dense peer of that shape. Columns that end in bf16 or
int8 are of lower precision: dense peers (torch's bf16 and dynamic int8, OpenVINO's bf16) and our own formats ("ours").
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import scipy.sparse
import side_by_side as sides
import torch
from torch import Tensor

from gossamer.claims import dense_peers as peers
from gossamer.claims.dense_peers import Run
from gossamer.kernels import native
from gossamer.kernels.gemv import gemv
from gossamer.kernels.int8 import gemv_int8, pack_int8
from gossamer.kernels.int8_steps import gemv_int8_steps, pack_int8_steps
from gossamer.kernels.pack import pack_bitmap, pack_block, pack_csr16, pack_csr_code, pack_csr_panel
from gossamer.kernels.spmm import linear

SHAPES = (  # out, in, vectors
    (1536, 384, 128),
    (3072, 768, 1),
    (3072, 768, 32),
    (4096, 4096, 1),
    (4096, 4096, 32),
)
SPARSITIES = (50, 70, 80, 90, 95)
FEW = 8


def dynamic_int8(weight: Tensor, x: Tensor) -> Run:
    """torch's own: activations rounded by tensor as they come."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, torch.qint8)
    return lambda: quantised(x)


def candidates(weight: Tensor, x: Tensor, sparsity: int) -> Iterator[tuple[str, Run, Tensor, float]]:
    """Name, run, exact result and allowed error of everything sparse."""
    for block in (1, 4):
        pruned = sides.prune(weight, sparsity, block)
        expected = x.double() @ pruned.double().t()
        for name, (run, limit) in (ours(pruned, x) if block == 1 else blocks(pruned, x)).items():
            yield name, run, expected, limit


def ours(pruned: Tensor, x: Tensor) -> dict[str, tuple[Run, float]]:
    def bind(function: Callable[..., Tensor], packed: object) -> Run:
        return lambda: function(packed, x)

    scipy_csr, torch_csr, x_t = scipy.sparse.csr_matrix(pruned.numpy()), pruned.to_sparse_csr(), x.t()
    array = x_t.numpy().copy()
    found: dict[str, tuple[Run, float]] = {
        "bitmap": (bind(gemv, pack_bitmap(pruned)), 1e-4),
        "csr16": (bind(gemv, pack_csr16(pruned)), 1e-4),
        "csr_panel": (bind(linear, pack_csr_panel(pruned, pixels=len(x))), 1e-4),
        "as code": (bind(linear, pack_csr_code(pruned)), 1e-4),
        "scipy csr": (lambda: (scipy_csr @ array).T, 1e-4),
        "torch csr": (lambda: (torch_csr @ x_t).t(), 1e-4),
        "ours bf16": (bind(gemv, pack_bitmap(pruned, torch.bfloat16)), 5e-2),
        "ours int8": (bind(gemv_int8, pack_int8(pruned)), 5e-2),
        "ours int8 steps": (bind(gemv_int8_steps, pack_int8_steps(pruned)), 5e-2),
    }
    return found


def blocks(pruned: Tensor, x: Tensor) -> dict[str, tuple[Run, float]]:
    packed = pack_block(pruned, 4)
    return {"block 4": (lambda: linear(packed, x), 1e-4)}


def measure(shape: tuple[int, int, int], sparsity: int, threads: int) -> tuple[dict[str, float], str]:
    """Speed-ups over the best fp32 dense peer, and its name."""
    rows, columns, vectors = shape
    torch.manual_seed(columns + sparsity)
    weight, x = torch.randn(rows, columns), torch.randn(vectors, columns)
    full, low = peers.linear(weight, x, threads, low=True)
    low["torch int8"] = dynamic_int8(weight, x)
    for name, run in (full | low).items():
        peers.check(run, x.double() @ weight.double().t(), name, 5e-2 if name in low else 1e-4)
    sparse = {}
    for name, run, expected, limit in candidates(weight, x, sparsity):
        peers.check(run, expected, name, limit)
        sparse[name] = run
    times = sides.seconds(full | sparse | low, threads)
    best = min(full, key=times.__getitem__)
    return {name: times[best] / times[name] for name in sparse | low}, best


def tables(sparsities: list[int], threads: int, vectors: list[int]) -> Iterator[str]:
    """A Markdown table for each shape, line by line."""
    for shape in (s for s in SHAPES if s[2] in vectors):
        yield f"\n### {shape[1]} inputs, {shape[0]} outputs, {shape[2]} vector{'s' * (shape[2] > 1)}\n"
        results = []
        for sparsity in sparsities:
            speedups, best = measure(shape, sparsity, threads)
            if not results:
                columns = list(speedups)
                yield f"| sparsity | best dense fp32 | {' | '.join(columns)} |"
                yield "|---" * (2 + len(columns)) + "|"
            results.append(speedups)
            yield f"| {sparsity} % | {best} | {sides.cells(speedups, columns)} |"
        for label, row in sides.summary(results).items():
            yield f"| {label} | | {sides.cells(row, columns, '**')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="+", default=list(SPARSITIES), help="in percent")
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 32, 128], help="only shapes with so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the Markdown here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    lines = [f"Speed-up over the best dense fp32 peer, {options.threads} thread(s), level `{native.level()}`."]
    print(lines[0])
    with torch.inference_mode():
        for line in tables(options.sparsity, options.threads, options.vectors):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
