"""Decoding sparse codes: gathering (kernels/codes), torch's CSR product, kernels/spmm, and the dense product, in turns.

    python benchmarks/autoencoders/decode.py

Printed: time relative to the dense product, medians; `spmm` without packing, and packing alone.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gossamer.kernels.codes import SparseCode, decode
from gossamer.kernels.pack import pack_csr_panel
from gossamer.kernels.spmm import spmm
from gossamer.kernels.topk import topk_mask


def rivals(rows: int, width: int, features: int, k: int) -> dict[str, Callable[[], Tensor | object]]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, features, generator=generator).relu()
    z = z * topk_mask(z, rows * k)
    dictionary = torch.randn(features, width, generator=generator)
    code, packed = SparseCode.of(z), pack_csr_panel(z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        csr = torch.sparse_csr_tensor(code.offsets, code.indices, code.values, code.shape)
    return {
        "dense": partial(torch.matmul, z, dictionary),
        "gather": partial(decode, code, dictionary),
        "torch CSR": partial(torch.matmul, csr, dictionary),
        "spmm": partial(spmm, packed, dictionary),
        "packing for spmm": partial(pack_csr_panel, z),
        "making the code": partial(SparseCode.of, z),
    }


def main() -> None:
    torch.set_num_threads(1)
    for shape in ((1024, 64, 512, 8), (2048, 256, 4096, 32), (64, 768, 24576, 32)):
        runs = rivals(*shape)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(12):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
        dense = statistics.median(seconds["dense"][2:])
        print(f"rows {shape[0]}, width {shape[1]}, features {shape[2]}, k {shape[3]}")
        for name, values in seconds.items():
            print(f"  {name:18} {statistics.median(values[2:]) / dense:.4f}")


if __name__ == "__main__":
    main()
