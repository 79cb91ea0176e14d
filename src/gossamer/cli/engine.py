"""`gossamer compile`, `bench`, `export` and `shrink`: what a trained model gains in time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, say, size
from gossamer.cli.options import Json, ModelName
from gossamer.cli.saved import SHRINK_PLAN, Saved, Shape, Source, new_file, new_folder, save_changed, saved_model
from gossamer.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from gossamer.engine.runtime import Plan

RECALIBRATION = 20  # batches, as in `gossamer prune`
Batch = Annotated[int, typer.Option(min=1, help="Inputs at a time, for measurements.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: as many as torch uses.")]


def compile(
    source: Source,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the plan in this file.")] = None,
    model: ModelName = None,
    shape: Shape = None,
    batch: Batch = 1,
    threads: Threads = None,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16: layers may round to it.")] = "float32",
    as_json: Json = False,
) -> None:
    """Compile a trained model for this processor, show which layer runs how, and compare with torch.

    Example: gossamer compile out/train -o out/digits.plan
    """
    from gossamer.engine import compile as compile_model

    if output is not None:
        new_file(output)
    found = saved_model(source, model, shape, batch)
    plan = compile_model(found.model, found.example, threads=threads, precision=precision)
    _show(plan.report(), as_json)
    if output is not None:
        plan.save(output)
        if not as_json:
            print(f"plan: {output}, {size(output.stat().st_size)}, runs without torch; gossamer bench {output}")


def bench(
    plan: Annotated[Path, typer.Argument(help="Plan file.")],
    batch: Batch = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads to run on.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure a saved plan, layer by layer, and recall what its peers took when it was compiled.

    Example: gossamer bench out/digits.plan
    """
    import time

    import numpy as np

    from gossamer.engine import runtime

    if plan.is_dir() or plan.suffix == ".safetensors":
        raise ConfigError(f"{plan} holds a model, not a plan; make one by gossamer compile {plan} -o model.plan")
    loaded = runtime.Plan.load(plan, threads)
    x = np.random.default_rng(0).standard_normal((batch, *loaded.input_shape), np.float32)
    y = np.empty((batch, *loaded.output_shape), np.float32)
    best = np.full(loaded.steps, np.iinfo(np.int64).max)
    total = math.inf
    for _ in range(30):
        clock = np.zeros(loaded.steps, np.int64)
        start = time.perf_counter()
        loaded.run_at(x.ctypes.data, y.ctypes.data, batch, clock)
        total = min(total, time.perf_counter() - start)
        best = np.minimum(best, clock)
    steps, then = (best / 1e3).tolist(), loaded.report()
    if as_json:
        found = {"milliseconds": 1e3 * total, "inputs_per_second": batch / total, "steps_us": steps}
        print_json(found | {"names": _step_names(loaded), "when_compiled": then.milliseconds})
        return
    print(f"{1e3 * total:.3f} ms for {batch} input(s), {batch / total:.0f} inputs a second, {threads} thread(s)")
    for name, us in zip(_step_names(loaded), steps, strict=True):
        print(f"{us:10.1f} us  {name}")
    times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in sorted(then.milliseconds.items(), key=lambda pair: pair[1]))
    if times:
        print(f"when it was compiled ({then.threads} thread(s), batch {then.batch}): {times}")


def _step_names(plan: Plan) -> list[str]:
    """Layer and format of each step; numbers where a layer takes several steps."""
    rows = [row for row in plan.report().layers if row.runs != "with the next layer"]
    names = [f"{row.layer} ({row.kind}, {row.runs})" for row in rows]
    return names if len(names) == plan.steps else [f"step {i}" for i in range(plan.steps)]


def export(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file.")] = Path("out/model.onnx"),
    model: ModelName = None,
    shape: Shape = None,
    batch: Batch = 1,
    as_json: Json = False,
) -> None:
    """Write an ONNX file, check it in ONNX Runtime, and print what the zeros gain there.

    Example: gossamer export out/train -o out/digits.onnx
    """
    from gossamer.engine.onnx import export as export_model

    new_file(output)
    found = saved_model(source, model, shape, batch)
    _show(export_model(found.model, found.example, output), as_json)


def shrink(
    source: Source,
    budget: Annotated[float, typer.Option(help="Share of the present cost, in (0, 1].")] = 0.5,
    by: Annotated[str, typer.Option(help="flops or latency.")] = "flops",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")] = Path("out/shrink"),
    model: ModelName = None,
    shape: Shape = None,
    batch: Batch = 1,
    as_json: Json = False,
) -> None:
    """Remove whole channels until the model costs a share of what it did: faster in any runtime.

    The folder of a run brings its data: batch statistics are then recalibrated, and the model is measured before and
    after. `compile` and `export` read the folder that this writes.

    Example: gossamer shrink out/train --budget 0.5 -o out/small
    """
    from gossamer.engine.shrink import shrink as shrink_model
    from gossamer.runs.files import write_json

    found = saved_model(source, model, shape, batch)
    new_folder(output, found)
    small = shrink_model(found.model, found.example, budget, by=by)  # type: ignore[arg-type]
    measured = _recalibrated(found, small.model)
    save_changed(output, small.model, found)
    write_json(output / SHRINK_PLAN, small.plan)
    if as_json:
        print_json({"folder": str(output), **_plain(small), **measured})
        return
    print(small)
    for name, value in (measured["before_test"] or {}).items():
        print(f"test {name}: {value:.4f} before, {measured['test'][name]:.4f} after, without further training")
    print(f"model: {output / 'model.safetensors'}")


def _recalibrated(source: Saved, small: nn.Module) -> dict[str, Any]:
    """Test measures before and after; recalibrates the batch statistics of `small`. None without the run's data."""
    from gossamer.report.experiment import TASKS
    from gossamer.sparsify.averaging import recalibrate_bn

    if source.data is None or source.config is None:
        return {"recalibrated": 0, "before_test": None, "test": None}
    task, data = TASKS[source.config.task], source.data
    before = task(source.model).evaluate(data.test)
    used = recalibrate_bn(small, data.train, min(RECALIBRATION, len(data.train)))
    if used:
        say(f"batch statistics recalibrated on {used} batches")
    return {"recalibrated": used, "before_test": before, "test": task(small.eval()).evaluate(data.test)}


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(_plain(found))
    else:
        print(found)


def _plain(found: Any) -> dict[str, Any]:
    values = found.to_json() if hasattr(found, "to_json") else dict(vars(found))
    return {key: value for key, value in values.items() if key not in ("model", "plan")}
