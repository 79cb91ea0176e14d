"""`gossamer search gflownet`: what an order-preserving GFlowNet samples, where the right answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json
from gossamer.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from gossamer.architectures.gflownet.answer import Answer
    from gossamer.architectures.gflownet.tasks import Task

ORDER, HEADINGS = "order", ("sampler", "mass on the best", "objects covered", "entropy", "their share of all")


def gflownet(
    problem: Annotated[str, typer.Argument(help="modes, front, words or benzenes.")] = "modes",
    flow: Annotated[str, typer.Option(help="Loss: tb, db, subtb or fm.")] = "tb",
    weight: Annotated[float, typer.Option(help="Of the order beside the flow of db, subtb and fm.")] = 0.1,
    ranks: Annotated[str, typer.Option(help="batch: within the batch (the paper); global: among all seen.")] = "batch",
    reward: Annotated[
        list[float] | None, typer.Option(help="Train on score^BETA too, to compare; may be repeated.")
    ] = None,
    side: Annotated[int | None, typer.Option(min=2, help="Places along an axis of modes (8) and front (32).")] = None,
    objectives: Annotated[str, typer.Option(help="Of front: two of branin, currin, beale, shubert.")] = "branin,currin",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; the problem's own otherwise.")] = None,
    seed: Annotated[int, typer.Option(help="Of the trajectories.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of masses and the page.")] = Path(
        "out/gflownet"
    ),
    as_json: Json = False,
) -> None:
    """Train a GFlowNet on a problem that can be enumerated, and show where its mass lies.

    modes: four peaks on a grid. front: two functions on a grid. words: letters that should be alike. benzenes:
    substituents that draw electrons and keep the molecule soluble. All masses are exact.

    Example: gossamer search gflownet modes --reward 1 --reward 4 -o out/gflownet
    """
    import torch

    from gossamer.architectures.gflownet.answer import solve
    from gossamer.architectures.gflownet.balance import Flow
    from gossamer.architectures.gflownet.order import OrderLoss
    from gossamer.architectures.gflownet.tasks import task

    posed = task(problem, side=side, objectives=tuple(objectives.split(",")))
    if reward and posed.top is None:
        raise ConfigError(f"--reward needs one objective, and {problem} has {len(posed.labels)}")
    flows = {ORDER: Flow(flow, OrderLoss(ranks), weight=weight)}
    flows |= {f"reward^{beta:g}": Flow(flow, None, beta) for beta in reward or ()}
    training = replace(posed.training, seed=seed, steps=steps or posed.training.steps)
    found: dict[str, Answer] = {}
    for name, loss in flows.items():
        say(f"{problem}, {name}: {training.steps} steps of {training.batch} trajectories")
        torch.manual_seed(seed)
        found[name] = solve(posed, loss, training)
    _report(problem, posed, found, output, as_json)


def _report(problem: str, posed: Task, found: dict[str, Answer], output: Path, as_json: bool) -> None:
    from gossamer.runs.files import write_json

    record = {name: answer.figures() for name, answer in found.items()}
    table = [
        (name, f"{row['mass']:.3f}", f"{row['covered']:.0%}".replace("%", " %"), f"{row['entropy']:.3f}",
         f"{row['share']:.4f}")
        for name, row in record.items()
    ]  # fmt: skip
    first = found[ORDER]
    best = [posed.describe(o) | {"mass": m} for o, m in first.likeliest(20)]
    write_json(output / "gflownet.json", {"problem": problem, "samplers": record, "likeliest": best})
    page = _page(problem, posed, found, table, output)
    if as_json:
        print_json({"folder": str(output), "page": page and str(page), "samplers": record, "likeliest": best})
        return
    print_table(HEADINGS, table, problem)
    print(f"masses: {output / 'gflownet.json'}" + (f"   page: {page}" if page else ""))


def _page(problem: str, posed: Task, found: dict[str, Answer], table: Any, output: Path) -> Path | None:
    from gossamer.report.gflownet import mass_chart, objectives_chart
    from gossamer.report.search import lines_chart, write_page

    try:
        figures = {
            "Training": lines_chart(
                "loss", {n: [a.curve] for n, a in found.items()}, "optimiser step", "loss (mean of 10 steps)"
            )
        }
        if posed.side:
            grids = {"mass, " + name: answer.grid(posed.side) for name, answer in found.items()}
            grids = _known(posed, found[ORDER]) | grids
            figures = {"Mass on the grid": mass_chart("mass", grids)} | figures
        if len(posed.labels) == 2:
            first = found[ORDER]
            chart = objectives_chart("plane", first.scores, first.mass, first.best, (posed.labels[0], posed.labels[1]))
            figures = {"Objectives": chart} | figures
        lead = "Exact masses. The order is all that the first sampler was shown; the best objects are known."
        return write_page(output / "report.html", f"GFlowNet: {problem}", lead, (HEADINGS, table), figures,
                          f"gossamer search gflownet {problem} --output {output}")  # fmt: skip
    except MissingExtra as error:
        say(f"no page: {error}")
        return None


def _known(posed: Task, answer: Answer) -> dict[str, Any]:
    """The reward on the grid, or the cells of the true front."""
    import numpy as np

    if len(posed.labels) == 1:
        return {"reward": answer.score_grid(posed.side)}
    cells = np.zeros((posed.side, posed.side))
    cells[answer.objects[:, 0], answer.objects[:, 1]] = answer.best
    return {"true front": cells}
