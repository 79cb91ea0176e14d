"""`gossamer search`: find sparse architectures, and compare what was found with chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.cells import dass
from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.flows import gflownet
from gossamer.cli.jobs import run_all, slots_of
from gossamer.cli.layers import layers
from gossamer.cli.options import DataDir, Json, use_data
from gossamer.cli.studies import check_classes, made, numbers, settings, spoken
from gossamer.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from gossamer.architectures.paired import Compared
    from gossamer.architectures.study import Study
    from gossamer.runs.sweep import Job

search = typer.Typer(help="Search sparse architectures, against chance.", no_args_is_help=True)

search.command()(dass)
search.command()(layers)
search.command()(gflownet)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs and the page.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="A setting; repeat.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes at once; default: one per core.")]
Devices = Annotated[str | None, typer.Option(help="One process on each: cuda:0,cuda:1.")]


@search.command()
def random(
    data: Annotated[str, typer.Option("--data", "-d", help="Data set.")] = "digits",
    model: Annotated[str, typer.Option("--model", "-m", help="The over-parameterised parent.")] = "mlp",
    sparsities: Annotated[str, typer.Option("--sparsity", help="Fractions of masked nodes, with commas.")] = "0.9",
    space: Annotated[str, typer.Option(help="nodes, weights or nm.")] = "nodes",
    draws: Annotated[int, typer.Option(help="Random sub-networks that are scored before training.")] = 200,
    score: Annotated[str, typer.Option(help="loss, accuracy, gradient_norm, snip, ntk_condition, trained.")] = "loss",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...; a verdict needs three.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of every training.")] = 300,
    standardise: Annotated[bool, typer.Option(help="Give every input feature mean 0 and deviation 1.")] = False,
    margin: Annotated[float, typer.Option(help="Points of accuracy that do not matter.")] = 0.5,
    sets: Settings = None,
    output: Output = Path("out/search"),
    workers: Workers = None,
    devices: Devices = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Search sub-networks at initialisation, train the best, and compare it with the first one drawn.

    The same command again goes on where it stopped. Every arm trains equally long on the same batches.

    Example: gossamer search random --sparsity 0.5,0.9 --seeds 10 --standardise --set 'optim={"lr": 0.05}'
    """
    use_data(data_dir)
    if not margin > 0:
        raise ConfigError(f"margin, the points of accuracy that do not matter, must be positive, got {margin}")
    own = {"data": data, "space": space, "draws": draws, "score": score, "steps": steps, "score_steps": steps}
    own |= {"standardise": standardise}
    own |= {"model": model} | ({} if model == "mlp" else {"model_options": {}})
    with spoken():
        studies = {level: _study(own | {"sparsity": level} | settings(sets)) for level in numbers(sparsities)}
    slots = slots_of(workers, devices)
    jobs = [entry for level, study in studies.items() for entry in _jobs(level, study, seeds)]
    say(f"{len(jobs)} comparisons of {steps} steps, {len(slots)} at a time, in {output}")
    results = run_all(jobs, run_job, output / "runs", slots)
    rows = {level: [results[entry.name] for entry in _jobs(level, s, seeds)] for level, s in studies.items()}
    _report(studies, rows, margin, output, as_json)


def run_job(config: dict[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """One comparison, in a process of its own; perceptrons on one thread, which is fastest for them."""
    import torch

    from gossamer.architectures.study import job

    if config["study"]["model"] == "mlp":
        torch.set_num_threads(1)
    return job(config, folder, device)


def _study(values: dict[str, Any]) -> Study:
    """The study, tried on its data and parent, so that a bad name ends the search before it begins."""
    from gossamer.architectures.study import Study, mask_space, parent
    from gossamer.data import load
    from gossamer.training.config import OptimConfig

    study = made(Study.from_json, values)
    OptimConfig(**made(dict, study.optim))
    found = load(study.data, **made(dict, study.data_options))
    check_classes(study.data, found)
    mask_space(study, parent(study, found, 0), found)
    return study


def _jobs(level: float, study: Study, seeds: int) -> list[Job]:
    from gossamer.runs.sweep import Job

    return [Job(f"{level:g}-s{seed}", {"study": study.as_json(), "seed": seed}) for seed in range(seeds)]


def _report(
    studies: Mapping[float, Study],
    rows: Mapping[float, list[dict[str, Any]]],
    margin: float,
    output: Path,
    as_json: bool,
) -> None:
    from gossamer.architectures.paired import Arm, compare
    from gossamer.architectures.study import ARMS
    from gossamer.runs.files import write_json

    headings = ("nodes masked" if next(iter(studies.values())).space == "nodes" else "masked", "weights zero", "arm",
                "accuracy, %", "sd", "minus random", "95 % interval", "TOST p", "verdict", "scored")  # fmt: skip
    table, record = [], []
    for level, found in rows.items():
        seeds = tuple(row["seed"] for row in found)
        protocol = studies[level].protocol()
        arms = [
            Arm(name, seeds, tuple(100 * row[name]["accuracy"] for row in found), protocol,
                found[0]["cost"]["evaluations"] if name == "searched" else 0)
            for name in ARMS
        ]  # fmt: skip
        with spoken():
            shown = compare(arms, "random", margin)
        for compared in shown:
            zeros = 0.0 if compared.arm.name == "dense" else found[0]["sparsity"]["total"]
            table.append(_cells(level, zeros, compared))
            record.append(_json(level, zeros, compared))
        _cards(studies[level], level, found, output)
    write_json(output / "search.json", {"margin": margin, "arms": record})
    page = _page(rows, (headings, table), output)
    if as_json:
        print_json({"folder": str(output), "page": str(page) if page else None, "arms": record})
    else:
        print_table(headings, table)
        if page:
            print(f"page: {page}")


def _cards(study: Study, level: float, rows: list[dict[str, Any]], output: Path) -> None:
    """The report cards of one sparsity: a file that `report.card` reads, and their page."""
    from gossamer.architectures.study import ARMS
    from gossamer.report.card import Curve, ReportCard, comparison
    from gossamer.report.page import write

    roles: dict[str, Any] = {"dense": "dense", "random": "random_mask"}
    cards = [
        ReportCard(
            method=arm,
            role=roles.get(arm, "method"),
            model=study.model,
            data=study.data,
            steps=study.steps,
            selection="last",
            sparsity_scope="prunable",
            sparsity_target=0.0 if arm == "dense" else rows[0]["sparsity"]["total"],
            sparsity_prunable=0.0 if arm == "dense" else rows[0]["sparsity"]["total"],
            training_seconds=[row[arm]["seconds"] for row in rows],
            seeds=[row["seed"] for row in rows],
            values=[row[arm]["accuracy"] for row in rows],
            curves=[
                Curve(quantity="test accuracy", seed=row["seed"], steps=steps, values=values)
                for row in rows
                for steps, values in [[list(column) for column in zip(*row[arm]["curve"], strict=True)]]
            ],
        )
        for arm in ARMS
    ]
    made = comparison(
        cards, title=f"Random search at {level:g}", command=f"gossamer search random --sparsity {level:g}"
    )
    made.save(output / f"cards-{level:g}.json")
    try:
        write(made, output / f"cards-{level:g}.html")
    except MissingExtra as error:
        say(f"no page of cards: {error}")


def _cells(level: float, zeros: float, found: Compared) -> list[str]:
    gap, tost = found.difference, found.tost
    return [
        f"{level:g}",
        f"{zeros:.1%}".replace("%", " %"),
        found.arm.name,
        f"{found.mean:.2f}",
        f"{found.sd:.2f}",
        f"{gap.mean:+.2f}" if gap else "",
        f"{gap.low:+.2f} to {gap.high:+.2f}" if gap else "",
        f"{tost.p:.3f}" if tost else "",
        found.verdict or "control",
        f"{found.arm.cost:g}",
    ]


def _json(level: float, zeros: float, found: Compared) -> dict[str, Any]:
    gap = found.difference
    return {
        "sparsity": level,
        "weight_sparsity": zeros,
        "arm": found.arm.name,
        "accuracy": found.mean,
        "sd": found.sd if len(found.arm.seeds) > 1 else None,
        "values": list(found.arm.values),
        "difference": gap.mean if gap else None,
        "low": gap.low if gap and len(found.arm.seeds) > 1 else None,
        "high": gap.high if gap and len(found.arm.seeds) > 1 else None,
        "tost_p": found.tost.p if found.tost else None,
        "verdict": found.verdict,
        "evaluations": found.arm.cost,
    }


def _page(rows: Mapping[float, list[dict[str, Any]]], table: Any, output: Path) -> Path | None:
    from gossamer.architectures.study import ARMS
    from gossamer.report.search import lines_chart, write_page

    try:
        figures = {
            "Best score at initialisation": lines_chart(
                "trajectory",
                {f"{level:g} masked": [_steps(row["trajectory"]) for row in found] for level, found in rows.items()},
                "sub-networks scored", "score of the best so far", logarithmic=True),
        }  # fmt: skip
        for level, found in rows.items():
            lines = {
                arm: [tuple(zip(*((s, 100 * a) for s, a in row[arm]["curve"]), strict=True)) for row in found]
                for arm in ARMS
            }
            name = f"curve-{level:g}".replace(".", "-")
            figures[f"Training at {level:g}"] = lines_chart(name, lines, "optimiser step", "test accuracy (%)")  # type: ignore[arg-type]
        lead = "Searched: best of many random sub-networks before training. Random: the first one drawn. Same budget."
        return write_page(output / "report.html", "Random search for sparse networks", lead, table, figures,
                          f"gossamer search random --output {output}")  # fmt: skip
    except MissingExtra as error:
        say(f"no page: {error}")
        return None


def _steps(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    shown = [float("nan") if value is None else value for value in values]
    return [float(i + 1) for i in range(len(shown))], shown
