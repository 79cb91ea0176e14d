"""`gossamer demo`: the main job in one command. Dense against GraNet on digits, a table and a report page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import say
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.training.config import Config

WIDTH = 2.0
ARMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "random": {"sparsity": 0.9},
    "granet": {"sparsity": 0.9, "every": 20, "grow_stop": 0.9},
}


def configuration(arm: str, seed: int, steps: int) -> Config:
    """A digits MobileNet of double width on shifted noisy digits, an equal budget for every arm."""
    from gossamer.training.config import Config, DataPart, ModelPart, OptimConfig, RecipePart, TrainConfig

    return Config(
        data=DataPart(name="digits-shifted", options={"canvas": 16, "val": 0.1}),
        model=ModelPart(name="mobilenet-digits", options={"width": WIDTH}),
        recipe=RecipePart(name=arm, options=ARMS[arm]),
        train=TrainConfig(steps=steps, seed=seed, validate_every=steps // 8, optim=OptimConfig(name="nesterov")),
    )


def run_job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """One training of the demo, in a process of its own."""
    from gossamer.report.experiment import run
    from gossamer.training.config import Config

    return run(Config(**config), folder / "run", resume=True)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for runs and the report.")] = Path("out/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every arm.")] = 3,
    steps: Annotated[int, typer.Option(min=40, help="Optimiser steps of every run.")] = 400,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at the same time.")] = 2,
) -> None:
    """Train dense, random-mask and GraNet networks on digits at 90 % sparsity and compare them.

    Finished trainings are kept: the same command again goes on where it stopped.
    """
    from gossamer.data import load
    from gossamer.models import build
    from gossamer.report.card import comparison
    from gossamer.report.compare import table
    from gossamer.report.execution import compiled
    from gossamer.report.experiment import ROLES, card
    from gossamer.report.page import write
    from gossamer.runs.model_files import load_weights
    from gossamer.runs.sweep import Job, sweep

    configs = {f"{arm}-{seed}": configuration(arm, seed, steps) for arm in ARMS for seed in range(seeds)}
    jobs = [Job(name, config.model_dump(mode="json")) for name, config in configs.items()]
    say(f"training {len(jobs)} networks of {steps} steps, {workers} at a time")

    def report(name: str, failure: str | None) -> None:
        say(f"  {name}: {failure or 'done'}")

    swept = sweep(jobs, run_job, output, ("cpu",) * workers, report)
    if swept.failures:
        raise GossamerError(f"these trainings failed: {swept.failures}")
    command = f"gossamer demo --seeds {seeds} --steps {steps}"
    cards = [
        card([swept.results[f"{arm}-{seed}"] for seed in range(seeds)], role=ROLES.get(arm, "method"), command=command)
        for arm in ARMS
    ]
    best, data = cards[-1], load("digits-shifted", canvas=16)
    model = build(best.model, shape=data.shape, classes=data.classes, width=WIDTH).eval()
    load_weights(output / "granet-0" / "run", model)
    cards[-1], ratio = compiled(best, model, data.test.batch(0)[0][:1], output / "granet.plan")
    shown = comparison(cards, title="Digits, 90 % sparse against dense", command=command)
    shown.save(output / "comparison.json")
    typer.echo(table(shown))
    if ratio is None:
        typer.echo("granet is not compiled: that needs the compiled kernels, see gossamer doctor")
    else:
        typer.echo(f"granet compiled: {ratio:.2f}x the fastest dense peer measured here (one thread, batch 1)")
    typer.echo(f"report: {write(shown, output / 'report.html')}")
