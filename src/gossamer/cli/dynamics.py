"""`gossamer dynamics`: learn a model with few ReLUs, plan with it, and watch the loop close."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json

dynamics = typer.Typer(help="Sparse neural dynamics and mixed-integer control.", no_args_is_help=True)

Model = Annotated[Path, typer.Option("--model", "-m", help="Folder that `dynamics train` made.")]
Horizon = Annotated[int, typer.Option(min=1, help="Steps that are planned.")]
Limit = Annotated[float, typer.Option(help="Seconds a solve may take; then the best incumbent is used.")]
Objects = Annotated[int, typer.Option(min=1, help="Discs to push, each to its own goal.")]


@dynamics.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model.")] = Path("out/dynamics"),
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="An .npz of inputs (N, in) and targets (N, out); else pushing.")
    ] = None,
    relus: Annotated[int, typer.Option(help="ReLUs to keep.")] = 12,
    hidden: Annotated[list[int] | None, typer.Option(help="Width of a hidden layer; repeat. Else 24 and 24.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the dense training, and of the last fine-tuning.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of data and weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a model and make most of its ReLUs identities or nothing.

    Example: gossamer dynamics train --relus 12 -o out/dynamics
    """
    import torch

    from gossamer.domains.dynamics import Budget, GatedReLUMLP, Pushing, fit, rmse, sparsify
    from gossamer.domains.dynamics.files import read_arrays, save

    if data is None:
        known, test = Pushing().data(40_000, 2 * seed + 1), Pushing().data(5_000, 2 * seed + 10_001)
    else:
        known, test = read_arrays(data)
    torch.manual_seed(seed)
    model = GatedReLUMLP([known[0].shape[1], *(hidden or [24, 24]), known[1].shape[1]])
    say(f"{len(known[0])} samples, {model.relus} ReLUs to {relus}")
    fit(model, known, steps, seed=seed)
    sparse = sparsify(model, known, relus, budget=Budget(max(1, steps // 6), max(1, steps // 20), steps), seed=seed)
    save(output, sparse)
    figures = {"dense rmse": rmse(model, test), "sparse rmse": rmse(sparse, test), **sparse.counts()}
    if as_json:
        print_json({"folder": str(output), **figures})
    else:
        print_table(("figure", "value"), figures.items())
        print(f"model: {output}   use: gossamer dynamics run --model {output}")


@dynamics.command()
def run(
    model: Model = Path("out/dynamics"),
    objects: Objects = 1,
    planner: Annotated[
        list[str] | None, typer.Option("--planner", "-p", help="milp, mppi, cem or gradient; repeat. Else all.")
    ] = None,
    horizon: Horizon = 4,
    limit: Limit = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the closed loop.")] = 9,
    seed: Annotated[int, typer.Option(help="Of the samplers.")] = 0,
    film: Annotated[Path | None, typer.Option(help="Write the closed loops as a GIF.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write their ends as a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Push discs to their goals in the true simulator, replanning every step; the pusher begins on the wrong side.

    Example: gossamer dynamics run -m out/dynamics -p milp -p cem --film loop.gif
    """
    from gossamer.domains.dynamics.files import load
    from gossamer.domains.dynamics.study import push

    episodes, goal, radius = push(load(model), objects, planner, horizon, limit, steps, seed)
    rows = {}
    for name, episode in episodes.items():
        away = abs(episode.states[:, :-2] - goal[:-2]).sum(1)
        last = {status: sum(p.status == status for p in episode.plans) for status in {p.status for p in episode.plans}}
        seconds = sum(p.seconds for p in episode.plans) / len(episode.plans)
        rows[name] = {"start": away[0], "end": away[-1], "sum": away[1:].sum(), "seconds": seconds, "plans": last}
    _show(episodes, goal, radius, film, picture)
    if as_json:
        print_json(rows)
    else:
        head = ("planner", "distance at start", "at the end", "summed", "seconds a plan", "plans")
        print_table(head, [(name, *row.values()) for name, row in rows.items()])


def _show(episodes: dict[str, Any], goal: Any, radius: float, film: Path | None, picture: Path | None) -> None:
    from gossamer.domains.dynamics import pictures

    for path, draw in ((film, pictures.film), (picture, pictures.strip)):
        if path is not None:
            say(f"written: {draw(path, episodes, goal, radius)}")


@dynamics.command()
def export(
    output: Annotated[Path, typer.Argument(help="File that ends in .lp or .mps.")],
    model: Model = Path("out/dynamics"),
    objects: Objects = 1,
    horizon: Horizon = 4,
    as_json: Json = False,
) -> None:
    """Write the planning program of a start on the wrong side, for any other solver.

    Example: gossamer dynamics export plan.mps -m out/dynamics --horizon 5
    """
    from gossamer.domains.dynamics import MILPPlanner, write
    from gossamer.domains.dynamics.files import load
    from gossamer.domains.dynamics.study import task

    problem, start = task(load(model), objects, horizon)
    program, _ = MILPPlanner(problem).program(start)
    facts = {"file": str(write(program, output)), "binaries": program.binaries, "variables": len(program.cost)}
    if as_json:
        print_json(facts)
    else:
        print_table(("figure", "value"), facts.items())
