"""`gossamer.compile`: a trained network as a plan that is never slower than torch on this machine."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.engine import onnx, tune
from gossamer.engine.assemble import Choice, assemble, join_pairs
from gossamer.engine.capture import capture
from gossamer.engine.checks import answer, check_example, check_model
from gossamer.engine.executor import Executor
from gossamer.engine.fuse import fuse
from gossamer.engine.graph import Graph, Node
from gossamer.engine.modules import swap_modules
from gossamer.engine.packing import DENSE, DENSE_BF16, ROW_FORMATS, TORCH, Packer, density, has_bf16
from gossamer.engine.report import LayerReport, PlanReport, joined
from gossamer.engine.runtime import Plan, check_input, checked_threads
from gossamer.errors import ConfigError, GossamerError, unknown
from gossamer.kernels import native

Call = Callable[[Tensor], Any]
PLAN, EAGER, CHANNELS_LAST, ONNX = "plan", "torch eager", "torch channels_last", "onnxruntime"
MODES = ("plan", "modules")
NOT_SPARSE = (DENSE, DENSE_BF16, TORCH)
PRECISIONS = ("float32", "bfloat16")
MOST_DIFFERENCE = {False: 1e-3, True: 5e-2}  # whether products round -> from torch, by the largest output


def compile(
    model: nn.Module,
    example: Tensor,
    *,
    mode: Literal["plan", "modules"] = "plan",
    threads: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Any:
    """Make a trained, sparse network fast on this processor.

    Normalisation is folded, activations and residual additions are fused, and each layer gets the format that
    measured fastest on this machine, dense ones included; measurements are kept under $GOSSAMER_CACHE (default
    ~/.cache/gossamer). The whole plan then runs against torch, and torch is kept if it is faster.

    Args:
        model: in evaluation mode. Weights are copied: later changes need a new compilation.
        example: float32 (batch, ...); later inputs may have any batch size but need the same other sizes. For
            "modules" a tensor of any type, a tuple of positional or a dict of keyword arguments.
        mode: "plan" compiles the whole network; "modules" replaces linear layers and 1x1 convolutions of `model`,
            in place, where that is faster, so that it stays a module for torch.compile or transformers.
        threads: fixed number; None follows torch.get_num_threads().
        precision: "bfloat16" lets layers round their weights and inputs to it where that measured faster (sums and
            what passes from layer to layer stay float32), on processors that have instructions for it. Outputs then
            differ by some 1e-2: compare your task's accuracy.
    Returns:
        a `CompiledPlan` for "plan", the model itself for "modules".
    Raises:
        ConfigError: the model is in training mode or not float32 on the CPU, does not accept the example, or returns
            something else than one tensor (plans); an unknown mode or precision; threads below 1.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    rounds = precision != PRECISIONS[0]
    checked_threads(threads)
    check_model(model)
    if mode == "modules":
        if threads is not None:
            raise ConfigError("modules follow torch.set_num_threads; threads is for plans")
        if isinstance(example, Tensor) and (example.is_floating_point() or example.is_complex()):
            check_input(tuple(example.shape), str(example.dtype), tuple(example.shape[1:]))
        return swap_modules(model, example, rounds and has_bf16())
    check_example(example)
    return CompiledPlan(model, example, threads, rounds)


class CompiledPlan(Plan):
    """A network compiled in this process. `gossamer.Plan.load` gives its saved form.

    Called with a float32 tensor (batch, *input_shape) it returns a tensor, with a numpy array an array.
    """

    def __init__(self, model: nn.Module, example: Tensor, threads: int | None, rounds: bool = False) -> None:
        self._model = copy.deepcopy(model)
        output = answer(self._model, example)
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"a plan has one output tensor, but this {type(model).__name__} returns a {type(output).__name__}; use "
                "mode='modules', or wrap the model in one that returns the tensor you need"
            )
        self.threads = checked_threads(threads)
        self.input_shape = tuple(example.shape[1:])
        self._rounds = rounds and has_bf16()
        self._fast: Executor | None = None
        self._native: Executor | None = None
        self._run: Call = torch.no_grad()(self._model)
        self._report = PlanReport(runs=EAGER, threads=self._thread_count(), level=native.level(), batch=len(example))
        if rounds and not self._rounds:
            self._report.breaks.append("this processor has no instructions for bfloat16: float32 stays")
        with torch.no_grad():
            self._build(example.detach().contiguous())

    # ---- running

    def __call__(self, x: Any) -> Any:
        """The network's output, of the type of `x`.

        Raises:
            ShapeError: shapes unlike the example's. ConfigError: not float32, or on another device.
        """
        if isinstance(x, np.ndarray):
            return self(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        if not isinstance(x, Tensor) or not x.is_cpu:
            raise ConfigError(f"a plan takes a CPU tensor or a numpy array, got {type(x).__name__}")
        if x.dtype is not torch.float32 or x.shape[1:] != self.input_shape:  # asked first: small networks are quick
            check_input(tuple(x.shape), str(x.dtype), self.input_shape)
        if self._batch is not None and self._batch != len(x):
            raise ConfigError(f"this model fixes the batch size to {self._batch} in its code, the input has {len(x)}")
        return self._run(x.detach() if x.requires_grad else x)

    def _thread_count(self) -> int:
        return self.threads or native.threads()

    # ---- compiling

    def _build(self, example: Tensor) -> None:
        self._batch: int | None = None
        try:
            native_reason = "" if native.extension() is not None else "the compiled kernels are missing or switched off"
            graph = None if native_reason else capture(self._model, example)
        except ConfigError:
            raise
        except GossamerError as error:
            graph, native_reason = None, str(error)
        if graph is None or graph.source == graph.result:
            self._report.breaks.append(
                f"everything runs through torch: {native_reason or 'there is nothing to compute'}"
            )
            return
        self._batch = graph.batch
        if graph.batch is not None:
            self._report.breaks.append(f"the model's code fixes the batch size to {graph.batch}")
        fuse(graph)
        for node in graph.nodes:
            node.rounds = self._rounds
        self._tune(graph, example)
        self._compare(example)

    def _tune(self, graph: Graph, example: Tensor) -> None:
        packer, threads, images = Packer(), self._thread_count(), len(example)
        times = tune.measure(graph, example, threads, packer)
        by_id = {id(node): node for node in graph.nodes}
        choices = {key: tune.choose(by_id[key], found, images) for key, found in times.items()}
        own = {key: tune.best_native(by_id[key], found, images) for key, found in times.items()}
        fast, choices, portable = self._fastest(graph, choices, own, packer, example)
        self._fast, self._native = fast, portable
        measured = tune.fastest_steps(fast, example, threads)
        self._report.layers = [
            _layer(node, choices.get(id(node)), times.get(id(node), {}), measured.get(id(node)), images)
            for node in graph.nodes
        ]
        inside = {id(node) for node in fast.assembly.joined}
        for node, entry in zip(graph.nodes, self._report.layers, strict=True):
            if id(node) in inside:
                entry.runs = "with the next layer"
        self._report.breaks += [
            f"{node.name}: {node.reason}" for node in graph.nodes if node.op == "torch" and node.reason
        ]

    def _fastest(
        self, graph: Graph, choices: dict[int, Choice], own: dict[int, Choice], packer: Packer, example: Tensor
    ) -> tuple[Executor, dict[int, Choice], Executor]:
        """What runs, its choices, and what can be saved.

        Measured are native steps alone, joined steps where there are any, and native steps mixed with torch: every
        change between the two costs.
        """
        variants = {"native": (Executor(graph, assemble(graph, own, packer)), own)}
        if join_pairs(graph, own):
            variants["joined"] = (Executor(graph, assemble(graph, own, packer, join=True)), own)
        if choices != own:
            variants["mixed"] = (Executor(graph, assemble(graph, choices, packer)), choices)
        threads = self._thread_count()
        runners = {name: partial(executor, example, threads) for name, (executor, _) in variants.items()}
        times = tune.settle(runners, threads) if len(variants) > 1 else {"native": 0.0}
        best = min(times, key=lambda name: times[name])
        portable = min((name for name in times if name != "mixed"), key=lambda name: times[name])
        return *variants[best], variants[portable][0]

    def _compare(self, example: Tensor) -> None:
        """Race the plan against its peers, each exactly as a call would run it.

        A plan that computes something else than torch is a bug, and never runs.
        """
        fast, threads = self._fast, self._thread_count()
        assert fast is not None
        wanted, found = self._model(example), fast(example, threads)
        problem = _problem(wanted, found, MOST_DIFFERENCE[self._rounds])
        if not problem and wanted.is_floating_point():
            self._report.difference = _difference(wanted, found)
        if problem:
            self._fast = self._native = None
            self._report.breaks.append(
                f"everything runs through torch, as the plan is wrong: {problem}; please report it"
            )
            return
        runs: dict[str, Call] = {PLAN: self._call_of(fast), EAGER: self._run}
        if example.dim() == 4:
            model = copy.deepcopy(self._model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            runs[CHANNELS_LAST] = torch.no_grad()(lambda x: model(x.to(memory_format=torch.channels_last)).contiguous())
        if self._batch is None and _has_onnx() and not any(node.op == "torch" for node in fast.graph.nodes):
            session = onnx.session(onnx.graph_to_bytes(fast.graph), threads)
            runs[ONNX] = lambda x: torch.from_numpy(session(x.contiguous()))
        times = tune.settle({name: partial(run, example) for name, run in runs.items()}, threads)
        self._report.milliseconds = times
        self._report.runs = min(times, key=lambda name: times[name])
        self._run = runs[self._report.runs]

    def _call_of(self, fast: Executor) -> Call:
        if fast.assembly.is_native:
            return lambda x: fast(x.contiguous(), self._thread_count())
        return torch.no_grad()(lambda x: fast(x.contiguous(), self._thread_count()))

    # ---- files

    def save(self, path: str | Path) -> None:
        """Write one flat file that `Plan.load` runs without torch.

        Layers that torch would run faster here are written in their best native format.

        Raises:
            ConfigError: parts of the network run through torch only (they are named).
        """
        found = self._native
        if found is None or not found.assembly.is_native:
            raise ConfigError(f"this plan cannot be saved, parts need torch: {'; '.join(joined(self._report.breaks))}")
        graph = found.graph
        output = tuple(graph.output_shape or ())
        Plan(found.machine, graph.source, graph.result, self.input_shape, output, self._report).save(path)


def _has_onnx() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxruntime"))


def _problem(wanted: Any, found: Any, most: float) -> str:
    """How the plan's output differs from the model's by more than rounding; "" where it does not."""
    if wanted.shape != found.shape:
        return f"its output has shape {tuple(found.shape)}, the model's {tuple(wanted.shape)}"
    if not wanted.is_floating_point():
        return "" if torch.equal(wanted, found) else "its output differs from the model's"
    gap = _difference(wanted, found)
    is_near = gap <= most or not bool(torch.isfinite(wanted).all())
    return "" if is_near else f"its output differs from the model's by {gap:.3g} of the largest"


def _difference(wanted: Tensor, found: Tensor) -> float:
    return float((wanted - found).abs().max()) / max(1e-6, float(wanted.abs().max()))


def _layer(
    node: Node, choice: Choice | None, times: dict[str, float], measured: float | None, images: int
) -> LayerReport:
    kind = node.op
    if node.op == "conv":
        kind = f"conv {node.shape[3]}x{node.shape[4]}"
    if choice is None:
        runs = "torch" if node.op == "torch" else "native"
        return LayerReport(node.name, kind, runs, density(node), None, None, measured, node.reason)
    runs = choice.kind
    if tune.uses_rows(node, images) and choice.rows and choice.kind != TORCH:
        runs = choice.rows
    dense = {name: t for name, t in times.items() if name in (*NOT_SPARSE, *(() if _sparse(node) else ROW_FORMATS))}
    return LayerReport(
        node.name, kind, runs, density(node), times.get(runs), min(dense.values(), default=None), measured,
        _why_dense(node, runs, times),
    )  # fmt: skip


def _sparse(node: Node) -> bool:
    return (density(node) or 0.0) < 1


def _why_dense(node: Node, runs: str, times: dict[str, float]) -> str:
    kept = density(node) or 0.0
    if kept == 1:
        return "it has no zeros"
    if runs not in NOT_SPARSE:
        return ""
    sparse = {name: t for name, t in times.items() if name not in NOT_SPARSE}
    if not sparse:
        return "no sparse candidate"
    best = min(sparse, key=lambda name: sparse[name])
    return f"{best} took {sparse[best]:.0f} us: {100 * (1 - kept):.0f} % zeros do not pay at this size"
