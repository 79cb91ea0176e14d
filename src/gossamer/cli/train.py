"""`gossamer train`: one configured training into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import (
    ConfigFile,
    DataDir,
    DataName,
    Device,
    DryRun,
    Json,
    ModelName,
    Overwrite,
    RecipeName,
    Seed,
    Sets,
    Sparsity,
    Steps,
    describe,
    resolve,
    use_data,
)
from gossamer.runs.signals import Interrupted


def train(
    config: ConfigFile = None,
    sets: Sets = None,
    recipe: RecipeName = None,
    model: ModelName = None,
    data: DataName = None,
    sparsity: Sparsity = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = None,
    data_dir: DataDir = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("out/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    tracker: Annotated[list[str] | None, typer.Option(help="tensorboard, mlflow or wandb, beside the log.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model by a recipe; keep its files, its log and its figures in a folder.

    An interrupted training goes on to the same bits with --resume, which needs no other option.

    Example: gossamer train --recipe rigl --sparsity 0.95 --model mlp --data digits --steps 500 -o out/rigl
    """
    from gossamer.report.experiment import make_parts, run

    if resume and config is None and (output / "config.yaml").exists():
        config = output / "config.yaml"
    settings = resolve(
        config,
        sets,
        recipe=recipe,
        model=model,
        data=data,
        sparsity=sparsity,
        steps=steps,
        seed=seed,
        device=device,
    )
    use_data(data_dir)
    if dry_run:
        make_parts(settings)
        describe(settings, as_json)
        return
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "trackers": tuple(tracker or ())}
    try:
        outcome = run(settings, output, progress=True, **options)
    except Interrupted:
        say(f"stopped, and saved in {output}; go on with: gossamer train --resume --output {output}")
        raise
    if as_json:
        print_json({"folder": str(output), **outcome})
    else:
        show(outcome)
        print(f"run: {output}   page: gossamer report {output}")


def show(outcome: dict[str, Any]) -> None:
    """The figures of one run as a table."""
    fit, card = outcome["fit"], outcome["card"]
    rows = [("density", fit["density"]), ("steps", fit["steps"]), ("seconds", fit["seconds"])]
    for part in ("val", "test"):
        rows += [(f"{part} {name}", value) for name, value in (fit[part] or {}).items()]
    rows += list(outcome["calibration"].items())
    if card is not None:
        rows += [(f"sparsity, {scope}", card[f"sparsity_{scope}"]) for scope in ("prunable", "weights", "all")]
        rows += [(f"bytes, {name}", count) for name, count in card["bytes_by_format"].items()]
    print_table(("figure", "value"), rows)
