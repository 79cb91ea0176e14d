"""`gossamer reprogram`: does a sparse model transfer as well as its parent, by a prompt and by a probe?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.jobs import run_all, slots_of
from gossamer.cli.options import DataDir, Json, use_data
from gossamer.cli.studies import check_classes, made, numbers, settings
from gossamer.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from gossamer.reuse.reprogramming.study import Sources, TransferStudy


def reprogram(
    sources: Annotated[
        list[Path] | None, typer.Argument(help="Folders of `gossamer train` runs; none: tickets are drawn here.")
    ] = None,
    data: Annotated[str, typer.Option("--data", "-d", help="Data set to transfer to.")] = "digits",
    source_data: Annotated[str, typer.Option(help="Data set that the tickets are drawn on.")] = "mnist",
    model: Annotated[str, typer.Option("--model", "-m", help="Network of the tickets.")] = "mlp",
    sparsities: Annotated[str, typer.Option("--sparsity", help="Of the tickets, with commas; 0 is dense.")] = "0,0.9",
    phases: Annotated[int, typer.Option(min=1, help="Prune and rewind so many times.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each training of the source.")] = 500,
    shots: Annotated[str, typer.Option(help="Samples per class, with commas; all takes every one.")] = "all,10",
    inner: Annotated[int | None, typer.Option(help="Side of the picture inside the prompt; default 5/7.")] = None,
    mapping: Annotated[str, typer.Option(help="Of labels: iterative, frequency or random.")] = "iterative",
    epochs: Annotated[int, typer.Option(min=1, help="Of prompt and probe.")] = 40,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only so many samples to transfer to.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...: of tickets, samples and training.")] = 1,
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="A setting.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs and the page.")] = Path(
        "out/reprogram"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once; default: one per core.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Adapt frozen classifiers to other data, by a border of learned pixels and by a new head; compare and calibrate.

    The same command again goes on where it stopped. Without folders a dense network and tickets of it are trained here.

    Example: gossamer reprogram out/dense out/rigl --data fashion-mnist-900 --shots all,10,5 --seeds 3 -o out/reprogram
    """
    from gossamer.reuse.reprogramming.study import TransferStudy
    from gossamer.runs.sweep import Job

    use_data(data_dir)
    study = made(
        TransferStudy.from_json,
        {
            "source": source_data, "model": model, "sparsities": numbers(sparsities), "phases": phases, "steps": steps,
            "target": data, "shots": _shots(shots), "inner": inner, "mapping": mapping, "epochs": epochs,
            "limit": limit, **settings(sets),
        },
    )  # fmt: skip
    folders = [str(folder.resolve()) for folder in sources or ()]
    made(_check, study, folders)
    config = {"study": study.as_json(), "sources": folders}
    jobs = [Job(f"s{seed}", config | {"seed": seed}) for seed in range(seeds)]
    slots = slots_of(workers)
    say(f"{seeds} seeds to {data}, {len(slots)} at a time, in {output}")
    results = run_all(jobs, run_job, output / "runs", slots)
    _report([results[job.name] for job in jobs], data, output, as_json)


def run_job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """One seed, in a process of its own."""
    import torch

    from gossamer.reuse.reprogramming.study import TransferStudy, report, tickets

    study = TransferStudy.from_json(config["study"])
    if study.model == "mlp":
        torch.set_num_threads(1)
    given = config["sources"]
    found = load_sources(given) if given else tickets(study, config["seed"], folder)
    return report(study, found, config["seed"], folder=folder)


def load_sources(folders: Sequence[str]) -> Sources:
    """The networks of finished runs, which must have been trained on one data set.

    Raises:
        ConfigError: a folder without settings, of another task, or runs on different data.
    """
    from gossamer.cli.options import resolve
    from gossamer.cli.prune import find_weights
    from gossamer.data import load
    from gossamer.models import load_weights
    from gossamer.reuse.reprogramming.study import build_for, sources

    models, known = {}, {}
    for folder in map(Path, folders):
        weights = find_weights(folder)
        if not weights.with_name("config.yaml").exists():
            raise ConfigError(f"{folder} does not say which model and data it is of; name the folder of a run")
        config = resolve(weights.with_name("config.yaml"), None)
        if config.task != "classification":
            raise ConfigError(f"only classifiers can be reprogrammed; {folder} is of the task {config.task!r}")
        data = load(config.data.name, **{"seed": config.train.seed, **config.data.options})
        known[folder] = (config.data.name, tuple(data.shape))
        name = folder.name if folder.name not in models else str(folder)
        models[name] = build_for(config.model.name, data, config.model.options)
        load_weights(models[name], weights)
    if len(set(known.values())) > 1:
        raise ConfigError(f"sources of one comparison share their data, got {sorted({n for n, _ in known.values()})}")
    return sources(models, data)


def _check(study: TransferStudy, folders: Sequence[str]) -> None:
    """Build source and target here, so that what does not fit is said before anything is trained."""
    from gossamer.data import load
    from gossamer.reuse.reprogramming.adapt import few_shot
    from gossamer.reuse.reprogramming.mapping import LabelMapping
    from gossamer.reuse.reprogramming.study import network, sources, target

    if folders:
        found = load_sources(folders)
    else:
        data = load(study.source, **study.source_options)
        check_classes(study.source, data)
        found = sources({"untrained": network(study, data)}, data)
    posed = target(study, found, 0)
    for count in study.shots:
        few_shot(posed.train[1], count)
    if "prompt" in study.ways:
        classes = int(posed.train[1].max()) + 1
        picture = posed.train[0][:1]
        outputs = next(iter(found.models.values()))(posed.prompt()(picture)).shape[1]
        LabelMapping("random").make(posed.train[1], posed.train[1], outputs, classes)


def _shots(text: str) -> list[int | None]:
    try:
        return [None if word == "all" else int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"shots are whole numbers or 'all' with commas between them, not {text!r}") from error


def _report(results: Sequence[Mapping[str, Any]], data: str, output: Path, as_json: bool) -> None:
    from gossamer.reuse.reprogramming import pictures, write_page
    from gossamer.reuse.reprogramming.page import grouped
    from gossamer.reuse.reprogramming.study import rows_of
    from gossamer.runs.files import write_json

    rows = [row for result in results for row in rows_of(result)]
    density = {name: fmean(r["density"][name] for r in results) for name in results[0]["density"]}
    record = {"target": data, "density": density, "rows": [row.as_json() for row in rows]}
    write_json(output / "transfer.json", record)
    try:
        page: Path | None = write_page(output / "transfer.html", rows, f"Transfer to {data}")
        seen = pictures.load(output / "runs" / "s0")
        if seen:
            pictures.add_to_page(output / "transfer.html", seen, 0)
    except MissingExtra as error:
        page = None
        say(f"no page: {error}")
    if as_json:
        print_json({"folder": str(output), "page": page and str(page), **record})
        return
    headings = ("way", "shots", "model", "density", "upstream, %", "accuracy, %", "ECE, %", "NLL")
    table = []
    for (_, way, shots, model), found in grouped(rows).items():
        mean = {name: fmean(getattr(row, name) for row in found) for name in ("upstream", "accuracy", "ece", "nll")}
        table.append(
            (way, str(shots or "all"), model, f"{density[model]:.3f}",
             *(f"{100 * mean[name]:.1f}" for name in ("upstream", "accuracy", "ece")), f"{mean['nll']:.3f}")
        )  # fmt: skip
    print_table(headings, table, f"transfer to {data}, {len(results)} seeds")
    print(f"rows: {output / 'transfer.json'}" + (f"   page: {page}" if page else ""))
