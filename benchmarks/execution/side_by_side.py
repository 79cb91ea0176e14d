"""What the benchmarks share: pruning, peers built from one ONNX model, and timing in turns within one process."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Run = Callable[[], object]
SLICES, SLICE_SECONDS = 12, 3e-3


def prune(weight: Tensor, sparsity: int, block: int) -> Tensor:
    """Random blocks of rows x 1 zeroed, exactly to the sparsity in percent (rounded to a block)."""
    strips, columns = weight.shape[0] // block, weight.shape[1]
    cells = torch.zeros(strips * columns, dtype=torch.bool)
    kept = round(strips * columns * (1 - sparsity / 100))
    cells[torch.randperm(len(cells))[:kept]] = True
    return weight * cells.view(strips, columns).repeat_interleave(block, 0)


def has(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def onnx_node(op: str, weight: np.ndarray, x: Tensor, y_shape: tuple[int, ...], **attributes: object) -> bytes:
    """An ONNX model of one operator on x and a constant weight."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y_shape))],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def onnxruntime_run(model: bytes, feed: dict[str, np.ndarray], threads: int) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)[0]


def openvino_run(
    model: bytes, feed: dict[str, np.ndarray], threads: int, precision: str = "f32"
) -> Callable[[], np.ndarray]:
    """precision: f32 or bf16."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model, b""), "CPU", hints).create_infer_request()
    for name, array in feed.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run() -> np.ndarray:
        request.infer()
        return request.get_output_tensor(0).data

    return run


def check(run: Run, expected: Tensor, name: str, limit: float = 1e-4) -> None:
    """Stop unless the result is right to `limit` of the largest entry (float64)."""
    result = run()
    got = result.float() if isinstance(result, Tensor) else torch.as_tensor(np.asarray(result)).float()
    error = float((got.reshape(expected.shape).double() - expected).abs().max() / expected.abs().max())
    if not error < limit:
        raise SystemExit(f"{name} is wrong: relative error {error:.1e}")


def seconds(runs: dict[str, Run], threads: int = 1) -> dict[str, float]:
    """Best seconds of a call, in turns: processor time with one thread, which other programs do not lengthen."""
    now = time.process_time if threads == 1 else time.perf_counter
    calls = {}
    for name, run in runs.items():
        run()
        start = now()
        run()
        run()
        calls[name] = max(1, round(2 * SLICE_SECONDS / max(now() - start, 1e-6)))
    best = dict.fromkeys(runs, math.inf)
    for _ in range(SLICES):
        for name, run in runs.items():
            run()  # whoever ran before
            start = now()
            for _ in range(calls[name]):
                run()
            best[name] = min(best[name], (now() - start) / calls[name])
    return best


def summary(results: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Geometric mean, best and worst of each column."""

    def mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    reduced = {"geometric mean": mean, "best": max, "worst": min}
    return {label: {name: f([r[name] for r in results]) for name in results[0]} for label, f in reduced.items()}
