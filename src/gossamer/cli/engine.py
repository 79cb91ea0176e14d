"""`gossamer compile`, `bench`, `export` and `shrink`: what a trained model gains in time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json
from gossamer.cli.options import Json, ModelName
from gossamer.cli.prune import find_weights
from gossamer.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gossamer.engine.runtime import Plan

SHRINK_PLAN = "shrink-plan.json"
Source = Annotated[Path, typer.Argument(help="Folder of a saved model or run, or a safetensors file.")]
Shape = Annotated[
    str | None, typer.Option("--shape", metavar="C,H,W", help="Of one input; default: that of the run's data.")
]
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

    found = _model(source, model, shape, batch)
    plan = compile_model(*found, threads=threads, precision=precision)
    if output is not None:
        plan.save(output)
    _show(plan.report(), as_json)


def bench(
    plan: Annotated[Path, typer.Argument(help="Plan file.")],
    batch: Batch = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads to run on.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure a saved plan, layer by layer.

    Example: gossamer bench out/digits.plan
    """
    import time

    import numpy as np

    from gossamer.engine import runtime

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
    steps = (best / 1e3).tolist()
    if as_json:
        print_json({"milliseconds": 1e3 * total, "inputs_per_second": batch / total, "steps_us": steps})
    else:
        print(f"{1e3 * total:.3f} ms for {batch} input(s), {batch / total:.0f} inputs a second, {threads} thread(s)")
        for name, us in zip(_step_names(loaded), steps, strict=True):
            print(f"{us:10.1f} us  {name}")


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

    _show(export_model(*_model(source, model, shape, batch), output), as_json)


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

    `compile` and `export` read the folder that it writes.

    Example: gossamer shrink out/train --budget 0.5 -o out/small
    """
    import json
    import shutil

    from safetensors.torch import save_file

    from gossamer.engine.shrink import shrink as shrink_model

    small = shrink_model(*_model(source, model, shape, batch), budget, by=by)  # type: ignore[arg-type]
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in small.model.state_dict().items()}, output / "model.safetensors")
    (output / SHRINK_PLAN).write_text(json.dumps(small.plan))
    settings = find_weights(source).with_name("config.yaml")
    if settings.exists():  # so that the other commands know the model
        shutil.copyfile(settings, output / settings.name)
    _show(small, as_json)


def _show(found: Any, as_json: bool) -> None:
    if not as_json:
        print(found)
        return
    hidden = ("model", "plan")
    print_json({key: value for key, value in _plain(found).items() if key not in hidden})


def _plain(found: Any) -> dict[str, Any]:
    return found.to_json() if hasattr(found, "to_json") else dict(vars(found))


def _model(source: Path, name: str | None, shape: str | None, batch: int) -> tuple[nn.Module, Tensor]:
    """The trained model in evaluation mode, and an example."""
    import torch

    from gossamer.data import load
    from gossamer.models import build, load_weights
    from gossamer.training.config import Config, load_config

    weights = find_weights(source)
    settings = weights.with_name("config.yaml")
    sizes = _sizes(shape)
    if name is not None:
        if sizes is None:
            raise ConfigError("--model needs --shape, such as --shape 3,32,32")
        made = build(name, shape=sizes)
    elif settings.exists():
        config = load_config(settings, kind=Config)
        data = load(config.data.name, **config.data.options)
        sizes = sizes or tuple(data.shape)
        made = build(config.model.name, **{"shape": sizes, "classes": data.classes} | config.model.options)
    else:
        raise ConfigError(f"{weights} has no config.yaml beside it: name the model by --model and --shape")
    _take_shape(made, weights.with_name(SHRINK_PLAN))
    load_weights(made, weights)
    return made.eval(), torch.randn(batch, *sizes, generator=torch.Generator().manual_seed(0))


def _take_shape(model: nn.Module, plan: Path) -> None:
    """The shapes of a model that `shrink` made smaller, where its plan lies beside the weights.

    Raises:
        CheckpointError: the plan is damaged, or belongs to another model.
    """
    import json

    from gossamer.sparsify.surgery import apply_shrink_plan

    if not plan.exists():
        return
    try:
        changes = json.loads(plan.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {plan}: {error}") from error
    apply_shrink_plan(model, changes)


def _sizes(shape: str | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    try:
        sizes = tuple(int(part) for part in shape.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--shape takes positive sizes such as 3,32,32, got {shape!r}")
    return sizes
