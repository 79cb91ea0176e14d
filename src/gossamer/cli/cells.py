"""`gossamer search dass`: cells that are good after pruning, against a dense search and a random cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.jobs import run_all, slots_of
from gossamer.cli.options import DataDir, Json, use_data
from gossamer.cli.studies import check_classes, made, settings, spoken
from gossamer.errors import MissingExtra

if TYPE_CHECKING:
    from gossamer.architectures.cell_study import CellStudy


def dass(
    preset: Annotated[str, typer.Option(help="chain or cells (minutes), darts (the authors' size).")] = "chain",
    keep: Annotated[float | None, typer.Option(help="Share of the weights of every layer that stays.")] = None,
    order: Annotated[int | None, typer.Option(help="1, or 2: look one step of the weights ahead.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Data set instead of the preset's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 1,
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="A setting.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for runs, cells and the page.")] = Path(
        "out/dass"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once; default: one per core.")] = None,
    devices: Annotated[str | None, typer.Option("--device", help="One process on each: cuda:0,cuda:1.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Search a cell with its masks on, retrain it, prune it, and time it through the engine.

    Two controls do the same: a dense search (DARTS) and a random cell. The same command again goes on where it
    stopped; a search under way is saved every 500 steps.

    Example: gossamer search dass --preset cells --data mnist --keep 0.1 -o out/cells
    """
    from gossamer.architectures import cell_study
    from gossamer.runs.sweep import Job

    use_data(data_dir)
    given: dict[str, Any] = {"keep": keep, "order": order, "data": data}
    changes = {key: value for key, value in given.items() if value is not None} | settings(sets)
    study = made(cell_study.preset, preset, **changes)
    made(_check, study)
    jobs = [Job(f"s{seed}", {"study": study.as_json(), "seed": seed}) for seed in range(seeds)]
    slots = slots_of(workers, devices)
    say(f"{seeds} seeds of {sum(study.search)} steps of search for two searches, in {output}")
    results = run_all(jobs, run_job, output / "runs", slots)
    _report(study, [results[job.name] for job in jobs], output, as_json)


def _check(study: CellStudy) -> None:
    """Build the parts here, so that what cannot be searched is said before it runs."""
    from gossamer.architectures.cell_study import network, parts, super_network, warn_of_overlap
    from gossamer.architectures.scored_layers import set_keep
    from gossamer.training.config import OptimConfig

    for optim in (study.weights, study.scores, study.arch, study.last):
        OptimConfig(**dict(optim))
    whole, train, val = parts(study, 0)
    check_classes(study.data, whole)
    model = super_network(study, whole)
    set_keep(model, study.keep)
    set_keep(network(study, whole, model.architecture()), study.keep)
    if train.samples <= 10_000:
        with spoken():
            warn_of_overlap(train, val)


def run_job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """One seed, in a process of its own."""
    import torch

    from gossamer.architectures.cell_study import CellStudy, run_seed
    from gossamer.papers.dass import compiled

    study = CellStudy.from_json(config["study"])
    if study.network.get("channels", 1) < 16:
        torch.set_num_threads(1)  # layers so small only wait for each other, and the bits then depend on no core
    return run_seed(study, config["seed"], folder=folder, device=device, measure=compiled)


def _report(study: CellStudy, rows: Sequence[Mapping[str, Any]], output: Path, as_json: bool) -> None:
    from gossamer.architectures.cell_study import ARMS
    from gossamer.runs.files import write_json

    headings = ("cell", "dense, %", "pruned, %", "non-zeros", "of", "torch, ms", "engine, ms", "ratio")
    table = [
        [
            arm,
            f"{100 * fmean(row[arm]['dense'] for row in rows):.2f}",
            f"{100 * fmean(row[arm]['pruned'] for row in rows):.2f}",
            f"{fmean(row[arm]['nonzeros'] for row in rows):.0f}",
            f"{fmean(row[arm]['total'] for row in rows):.0f}",
            f"{fmean(row[arm]['torch_ms'] for row in rows):.3f}",
            f"{fmean(row[arm]['plan_ms'] for row in rows):.3f}",
            f"{fmean(row[arm]['torch_ms'] / row[arm]['plan_ms'] for row in rows):.2f}x",
        ]
        for arm in ARMS
    ]
    record = [
        {arm: {k: v for k, v in row[arm].items() if k not in ("history", "curve")} for arm in ARMS} for row in rows
    ]
    write_json(output / "cells.json", {"study": study.as_json(), "seeds": record})
    page = _page(study, rows, (headings, table), output)
    if as_json:
        print_json({"folder": str(output), "page": str(page) if page else None, "seeds": record})
    else:
        print_table(headings, table)
        print(f"cells: {output / 'cells.json'}" + (f"   page: {page}" if page else ""))


def _page(study: CellStudy, rows: Sequence[Mapping[str, Any]], table: Any, output: Path) -> Path | None:
    from gossamer.architectures.cell_study import ARMS, space_of
    from gossamer.report.search import graph_chart, lines_chart, write_page

    space = space_of(study)
    searched = [arm for arm in ARMS if rows[0][arm]["history"]]
    try:
        entropy = {
            arm: [
                ([r["step"] for r in row[arm]["history"]], [r["entropy"] for r in row[arm]["history"]]) for row in rows
            ]
            for arm in searched
        }
        losses = {arm: [tuple(zip(*row[arm]["curve"], strict=True)) for row in rows] for arm in ARMS}
        figures = {
            "How sure the search is": lines_chart(
                "entropy", entropy, "step of the search", "entropy of the edges (nats)"
            ),
            "Retraining, pruning, fine-tuning": lines_chart("losses", losses, "optimiser step", "training loss"),  # type: ignore[arg-type]
        }
        for arm in ARMS:
            view = space.view(space.parse(rows[0][arm]["architecture"]))
            figures[f"{arm}, seed 0"] = graph_chart(f"graph-{arm.replace(' ', '-')}", view)
        lead = f"{100 * study.keep:g} % of the weights of every layer stay; all cells are retrained and pruned alike."
        return write_page(output / "report.html", "Cells that are good after pruning", lead, table, figures,
                          f"gossamer search dass --output {output}")  # fmt: skip
    except MissingExtra as error:
        say(f"no page: {error}")
        return None
