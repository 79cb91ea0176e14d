"""`gossamer search layers`: which N:M pattern each layer of a network gets, by three searches at equal budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.jobs import run_all, slots_of
from gossamer.cli.options import DataDir, Json, use_data
from gossamer.cli.studies import made, settings
from gossamer.errors import MissingExtra

Rows = Sequence[Mapping[str, Any]]


def layers(
    data: Annotated[str, typer.Option("--data", "-d", help="Data set.")] = "digits",
    model: Annotated[str, typer.Option("--model", "-m", help="Model, or package.module:callable.")] = "mlp",
    options: Annotated[str, typer.Option(help="What a layer may be, with commas.")] = "dense,2:4,1:4,1:8",
    budget: Annotated[int, typer.Option(help="Networks that each search may train.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of every training.")] = 150,
    flow: Annotated[str, typer.Option(help="Loss of the GFlowNet: tb, db, subtb or fm.")] = "tb",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 1,
    val: Annotated[float, typer.Option(help="Share of the training data that scores the networks.")] = 0.2,
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="A setting.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs and the page.")] = Path(
        "out/layers"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once; default: one per core.")] = None,
    devices: Annotated[str | None, typer.Option("--device", help="One process on each: cuda:0,cuda:1.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Search the N:M pattern of every layer: accuracy against density, by OP-GFN, NSGA-II and chance.

    Every trained network's figures are kept, so the same command goes on where it stopped. The settings of --set are
    those of `search random`; networks are scored on held-out training data, and the front is measured on the test set.

    Example: gossamer search layers --data mnist --budget 40 --set 'model_options={"hidden": [64, 64, 64]}'
    """
    from gossamer.architectures import layer_choice
    from gossamer.runs.sweep import Job

    use_data(data_dir)
    training = dict(layer_choice.LayerChoice().training) | {"data": data, "model": model, "steps": steps}
    training |= {} if model == "mlp" else {"model_options": {}}
    training |= {"data_options": {**dict(training["data_options"]), "val": val}}
    given = settings(sets)
    if "data_options" in given:
        given["data_options"] = {"val": val, **given["data_options"]}
    choice = made(layer_choice.LayerChoice, training | given, tuple(options.split(",")), budget, flow=flow)
    made(layer_choice.prepare, choice, 0)
    arms = [arm for arm in layer_choice.ARMS if arm != "nsga2" or find_spec("pymoo")]
    if "nsga2" not in arms:
        say("note: NSGA-II is left out; it comes with pip install 'gossamer[search]'")
    config = {"choice": choice.as_json(), "arms": arms}
    jobs = [Job(f"s{seed}", config | {"seed": seed}) for seed in range(seeds)]
    slots = slots_of(workers, devices)
    say(f"{seeds} seeds, {budget} networks of {steps} steps for each of {', '.join(arms)}, in {output}")
    results = run_all(jobs, run_job, output / "runs", slots)
    _report([results[job.name] for job in jobs], arms, output, as_json)


def run_job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """One seed, in a process of its own; perceptrons on one thread, which is fastest for them."""
    import torch

    from gossamer.architectures.layer_choice import job

    if config["choice"]["training"].get("model", "mlp") == "mlp":
        torch.set_num_threads(1)
    return job(config, folder, device)


def _report(rows: Rows, arms: Sequence[str], output: Path, as_json: bool) -> None:
    from gossamer.runs.files import write_json

    write_json(output / "layers.json", {"seeds": rows})
    headings = ("search", "networks", "area under the front", "best accuracy, %", "its density")
    table = [_cells(arm, [row[arm] for row in rows]) for arm in arms]
    found = _fronts(rows[0], arms[0])
    page = _page(rows, arms, (headings, table), output)
    if as_json:
        print_json({"folder": str(output), "page": str(page) if page else None, "seeds": rows})
        return
    print_table(headings, table)
    columns = (*rows[0]["slots"], "density", "held out, %", "test, %")
    print_table(columns, found, f"front of {arms[0]}, seed {rows[0]['seed']}")
    print(f"networks: {output / 'layers.json'}" + (f"   page: {page}" if page else ""))


def _cells(arm: str, found: Rows) -> list[str]:
    best = [max(row["evaluations"], key=lambda e: e[-3]) for row in found]
    return [
        arm,
        f"{fmean(len(row['evaluations']) for row in found):g}",
        f"{fmean(row['area'][-1] for row in found):.4f}",
        f"{100 * fmean(e[-3] for e in best):.2f}",
        f"{fmean(e[-2] for e in best):.3f}",
    ]


def _fronts(row: Mapping[str, Any], arm: str) -> list[list[str]]:
    """The front of one search, sparsest network first."""
    kept = sorted((row[arm]["evaluations"][i] for i in row[arm]["front"]), key=lambda e: e[-2])
    return [[*map(str, e[:-3]), f"{e[-2]:.3f}", f"{100 * e[-3]:.2f}", f"{100 * e[-1]:.2f}"] for e in kept]


def _page(rows: Rows, arms: Sequence[str], table: Any, output: Path) -> Path | None:
    from gossamer.architectures.space import View
    from gossamer.report.gflownet import fronts_chart
    from gossamer.report.search import graph_chart, lines_chart, write_page

    first = rows[0]
    try:
        points = {arm: [(e[-2], 100 * e[-3]) for e in first[arm]["evaluations"]] for arm in arms}
        areas = {arm: [(list(range(1, len(r[arm]["area"]) + 1)), r[arm]["area"]) for r in rows] for arm in arms}
        figures = {
            "Fronts, seed 0": fronts_chart("fronts", points, (False, True), ("density", "held-out accuracy (%)")),
            "Search trajectories": lines_chart("areas", areas, "networks trained", "area under the front"),
        }
        kept = sorted((first[arms[0]]["evaluations"][i] for i in first[arms[0]]["front"]), key=lambda e: e[-2])
        for title, row in {"Sparsest of the front": kept[0], "Most accurate of the front": kept[-1]}.items():
            nodes = ("input", *first["slots"])
            view = View(nodes, tuple((i, i + 1, str(label)) for i, label in enumerate(row[:-3])))
            figures[f"{title}: {100 * row[-3]:.1f} % at density {row[-2]:.2f}"] = graph_chart(
                f"graph-{title.split()[0].lower()}", view
            )
        lead = "Every search trains equally many networks. Larger area: more accuracy at less density."
        command = f"gossamer search layers --output {output}"
        return write_page(output / "report.html", "N:M patterns by layer", lead, table, figures, command)
    except MissingExtra as error:
        say(f"no page: {error}")
        return None
