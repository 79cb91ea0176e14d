"""Dense rivals of sparse layers and networks: torch, and the runtimes that are installed, each in its best setting.

A `Run` takes nothing and returns its result. Rivals come in two tables: fp32, and lower precision for comparison, which
holds the runtimes' too where `low` asks for them.
`slices` times them in turns within one process, so that a busy machine treats them alike.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.engine import onnx
from gossamer.kernels import native
from gossamer.kernels.formats import PackedWeight, matrix

Run = Callable[[], object]
Peers = dict[str, Run]
SLICE_SECONDS = 3e-3


def has(*packages: str) -> bool:
    """Whether all of them are installed."""
    return all(find_spec(package) for package in packages)


# --------------------------------------------------------------------------- runtimes


def onnxruntime_run(model: bytes, x: Tensor, threads: int) -> Run:
    """An ONNX model of one input in ONNX Runtime on the CPU."""
    session = onnx.session(model, threads)
    return lambda: session(x)


def openvino_run(model: bytes, x: Tensor, threads: int, precision: str = "f32") -> Run:
    """The same in OpenVINO; `precision` is f32 or bf16."""
    openvino: Any = import_module("openvino")
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def run() -> object:
        request.infer()
        return request.get_output_tensor().data

    return run


def runtimes(model: bytes, x: Tensor, threads: int, low: bool) -> tuple[Peers, Peers]:
    """ONNX Runtime and OpenVINO, where they are installed: in fp32, and with `low` in bf16."""
    full: Peers = {}
    half: Peers = {}
    if has("onnxruntime"):
        full["onnxruntime"] = onnxruntime_run(model, x, threads)
    if has("openvino"):
        full["openvino"] = openvino_run(model, x, threads)
        if low:
            half["openvino bf16"] = openvino_run(model, x, threads, "bf16")
    return full, half


# --------------------------------------------------------------------------- layers and networks


def convolution(weight: Tensor, x: Tensor, side: int, threads: int = 1, low: bool = False) -> tuple[Peers, Peers]:
    """A 1x1 convolution of weight (out, in) over x (in, side * side)."""
    image, kernel = x.view(1, -1, side, side), weight.view(*weight.shape, 1, 1)
    last, kernel_last = (t.contiguous(memory_format=torch.channels_last) for t in (image, kernel))
    last16, kernel16, out = last.bfloat16(), kernel_last.bfloat16(), torch.empty(len(weight), x.shape[1])
    full: Peers = {
        "torch.mm": lambda: torch.mm(weight, x, out=out),
        "torch conv": lambda: F.conv2d(image, kernel),
        "torch channels_last": lambda: F.conv2d(last, kernel_last),
    }
    half: Peers = {"torch bf16": lambda: F.conv2d(last16, kernel16)}
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False).eval()
    layer.weight.data = kernel
    return _joined((full, half), layer, image, threads, low)


def linear(weight: Tensor, x: Tensor, threads: int = 1, low: bool = False) -> tuple[Peers, Peers]:
    """A fully connected layer of weight (out, in) on x (vectors, in)."""
    weight16, x16 = weight.bfloat16(), x.bfloat16()
    full: Peers = {"torch": lambda: F.linear(x, weight)}
    half: Peers = {"torch bf16": lambda: F.linear(x16, weight16)}
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).eval()
    layer.weight.data = weight
    return _joined((full, half), layer, x, threads, low)


def network(model: nn.Module, x: Tensor, threads: int = 1, low: bool = False) -> tuple[Peers, Peers]:
    """A whole convolutional network in evaluation mode."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.to(memory_format=torch.channels_last)
    model16, x16 = copy.deepcopy(last).bfloat16(), x_last.bfloat16()
    full: Peers = {"torch eager": lambda: model(x), "torch channels_last": lambda: last(x_last)}
    half: Peers = {"torch bf16": lambda: model16(x16)}
    return _joined((full, half), model, x, threads, low)


def _joined(peers: tuple[Peers, Peers], model: nn.Module, x: Tensor, threads: int, low: bool) -> tuple[Peers, Peers]:
    if not has("onnx"):
        return peers
    full, half = runtimes(onnx.to_bytes(model, x), x, threads, low)
    return peers[0] | full, peers[1] | half


def sparse_convolution(packed: PackedWeight, x: Tensor, threads: int = 1) -> Run:
    """Our 1x1 convolution as a plan calls it: into memory that is there already, as torch.mm's `out`.

    Needs the compiled kernels.
    """
    extension, out = native.extension(), torch.empty(packed.rows, x.shape[1])
    shape = (1, x.shape[0], 1, x.shape[1], 1, 1, 1, 1, 0, 0, 1, 1)
    held, pointers = matrix(extension, packed), (x.data_ptr(), out.data_ptr())

    def run(keep: object = packed) -> Tensor:
        extension.conv(held, shape, *pointers, 0, 0, 0, threads)
        return out

    return run


# --------------------------------------------------------------------------- right, and how fast


def check(run: Run, expected: Tensor, name: str, limit: float = 1e-4) -> None:
    """Raises AssertionError unless the result is right to `limit` of the largest expected entry."""
    result = run()
    found = result.float() if isinstance(result, Tensor) else torch.as_tensor(np.asarray(result)).float()
    error = float((found.reshape(expected.shape).double() - expected).abs().max() / expected.abs().max())
    if not error < limit:
        raise AssertionError(f"{name} is wrong: relative error {error:.1e}")


def slices(runs: Mapping[str, Run], count: int, threads: int = 1) -> dict[str, list[float]]:
    """Name -> seconds of one call in each of `count` slices of some 3 ms, all in turns.

    Processor time with one thread, which other programs do not lengthen; wall time with more.
    """
    now = time.process_time if threads == 1 else time.perf_counter
    calls: dict[str, int] = {}
    for name, run in runs.items():
        run()
        start = now()
        run()
        calls[name] = max(1, round(SLICE_SECONDS / max(now() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            run()  # so that the time does not depend on who ran before
            start = now()
            for _ in range(calls[name]):
                run()
            times[name].append((now() - start) / calls[name])
    return times
