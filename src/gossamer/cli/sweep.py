"""`gossamer sweep`: recipes x sparsities x settings x seeds, chosen on validation data, compared on test data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, say
from gossamer.cli.options import (
    ConfigFile,
    DataDir,
    DataName,
    DryRun,
    Json,
    ModelName,
    Sets,
    Steps,
    resolve,
    use_data,
)
from gossamer.errors import ConfigError, GossamerError, MissingExtra

if TYPE_CHECKING:
    from gossamer.runs.sweep import Job
    from gossamer.training.config import Config

VALIDATION = 0.1  # held out of the training samples where the configuration holds out nothing


def sweep(
    recipes: Annotated[str, typer.Option("--recipes", "-r", help="Methods, with commas.")] = "dense,random,granet",
    sparsities: Annotated[str, typer.Option(help="Fractions of zeros, with commas.")] = "0.9",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of every arm.")] = 3,
    grid: Annotated[list[str] | None, typer.Option(help="Settings to choose on validation: a.b=1,2; repeat.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    model: ModelName = None,
    data: DataName = None,
    steps: Steps = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs and the page.")] = Path(
        "out/sweep"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at once; default: one per core.")] = None,
    devices: Annotated[str | None, typer.Option(help="One training on each: cuda:0,cuda:1.")] = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train every recipe at every sparsity with every seed, and compare them on equal terms.

    Where --grid offers settings, each arm takes those that are best on the validation part, by their mean over the
    seeds; the test part is looked at for the table alone. The same command again goes on where it stopped.

    Example: gossamer sweep --recipes dense,rigl,granet --sparsities 0.9,0.95 --seeds 3 --grid train.optim.lr=0.05,0.1
    """
    from gossamer.runs.sweep import sweep as run_all

    base = resolve(config, sets, model=model, data=data, steps=steps)
    use_data(data_dir)
    arms = plan(base, words(recipes), [_fraction(word) for word in words(sparsities)], grid or ())
    jobs = [job for points in arms.values() for point in points for job in _jobs(point, seeds)]
    check(jobs)
    slots = tuple(words(devices)) if devices else ("cpu",) * (workers or os.cpu_count() or 1)
    say(f"{len(jobs)} trainings of {base.train.steps} steps, {len(slots)} at a time, in {output}")
    if dry_run:
        names = [job.name for job in jobs]
        print_json(names) if as_json else print("\n".join(names))
        return
    done = run_all(jobs, run_job, output, slots, lambda name, failure: say(f"  {name}: {failure or 'done'}"))
    if done.failures:
        failed = ", ".join(done.failures)
        raise GossamerError(
            f"{len(done.failures)} of {len(jobs)} trainings failed: {failed}. Each folder's error.txt says why"
        )
    chosen = {
        arm: choose([[done.results[job.name] for job in _jobs(p, seeds)] for p in points])
        for arm, points in arms.items()
    }
    _report([outcome for outcomes in chosen.values() for outcome in outcomes], output, as_json)


def run_job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """One training, in a process of its own."""
    from gossamer.report.experiment import run
    from gossamer.training.config import Config

    if device.startswith("cuda:"):
        visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
        index = device.partition(":")[2]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
    return run(Config(**config), folder / "run", resume=True)


def words(text: str) -> list[str]:
    """The parts between commas.

    Raises:
        ConfigError: there is none.
    """
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise ConfigError(f"expected values with commas between them, got {text!r}")
    return list(dict.fromkeys(found))


def _fraction(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ConfigError(f"a sparsity is a number such as 0.9, not {word!r}") from None


def plan(
    base: Config, recipes: Sequence[str], sparsities: Sequence[float], grid: Sequence[str]
) -> dict[str, list[Config]]:
    """Arm -> its candidates, seedless. Recipes without the option `sparsity` make one arm."""
    import inspect

    from gossamer.recipes import RECIPES
    from gossamer.training.config import RecipePart, with_overrides

    data = base.data.model_copy(update={"options": {"val": VALIDATION} | base.data.options})
    axes = [[f"{key}={value}" for value in words(values)] for key, _, values in (g.partition("=") for g in grid)]
    arms: dict[str, list[Config]] = {}
    for recipe in recipes:
        has = recipe not in RECIPES or "sparsity" in inspect.signature(RECIPES[recipe]).parameters
        for sparsity in sparsities if has and not recipe.endswith((".yaml", ".yml")) else [None]:
            kept = dict(base.recipe.options) if recipe == base.recipe.name else {}
            part = RecipePart(name=recipe, options=kept | ({} if sparsity is None else {"sparsity": sparsity}))
            arm = base.model_copy(update={"recipe": part, "data": data})
            name = Path(recipe).stem if sparsity is None else f"{recipe}-{sparsity:g}"
            arms[name] = [with_overrides(arm, point) for point in product(*axes)]
    return arms


def _jobs(point: Config, seeds: int) -> list[Job]:
    from gossamer.runs.sweep import Job
    from gossamer.training.config import with_overrides

    configs = [with_overrides(point, [f"train.seed={seed}"]).model_dump(mode="json") for seed in range(seeds)]
    return [Job(_job_name(config), config) for config in configs]


def _job_name(config: Mapping[str, Any]) -> str:
    """Readable, and different for different settings."""
    import hashlib

    recipe, seed = config["recipe"], config["train"]["seed"]
    digest = hashlib.sha256(json.dumps({**config, "train": {**config["train"], "seed": 0}}, sort_keys=True).encode())
    sparsity = recipe["options"].get("sparsity")
    middle = "" if sparsity is None else f"-{sparsity:g}"
    return f"{Path(recipe['name']).stem}{middle}-{digest.hexdigest()[:6]}-s{seed}"


def check(jobs: Sequence[Job]) -> None:
    """Build the parts of every first-seed job here, so that a bad name ends the sweep before it begins."""
    from gossamer.report.experiment import make_parts
    from gossamer.training.config import Config

    for job in jobs:
        if job.name.endswith("-s0"):
            make_parts(Config(**job.config))


def choose(candidates: Sequence[Sequence[dict[str, Any]]]) -> Sequence[dict[str, Any]]:
    """The candidate (its outcomes over the seeds) with the best mean validation score; ties go to the first."""
    from gossamer.report.experiment import TASKS

    if len(candidates) == 1:
        return candidates[0]
    task = TASKS[candidates[0][0]["config"]["task"]]
    if any(outcome["fit"]["val"] is None for outcomes in candidates for outcome in outcomes):
        raise ConfigError("--grid chooses on the validation part, and data.options.val=0 holds out nothing")
    sign = 1 if task.larger else -1
    return max(candidates, key=lambda outcomes: sign * fmean(o["fit"]["val"][task.score] for o in outcomes))


def _report(outcomes: Sequence[dict[str, Any]], output: Path, as_json: bool) -> None:
    from gossamer.report.collect import compared
    from gossamer.report.compare import plain_rows, table
    from gossamer.report.page import write

    shown = compared(outcomes, title=f"Sweep in {output.name}", command=f"gossamer compare {output}")
    shown.save(output / "comparison.json")
    page: Path | None = None
    try:
        page = write(shown, output / "report.html")
    except MissingExtra as error:
        say(f"no page: {error}")
    if as_json:
        print_json({"folder": str(output), "page": str(page) if page else None, "rows": plain_rows(shown)})
        return
    print(table(shown), end="")
    if page:
        print(f"page: {page}")
