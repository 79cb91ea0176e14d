"""`gossamer dynamics`: learn a model with few ReLUs, plan with it, and watch the loop close."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, remarks, say
from gossamer.cli.options import Json

if TYPE_CHECKING:
    from gossamer.domains.dynamics.study import Scene

dynamics = typer.Typer(help="Sparse neural dynamics and mixed-integer control.", no_args_is_help=True)

Model = Annotated[Path, typer.Option("--model", "-m", help="Folder that `dynamics train` made.")]
Task = Annotated[
    str | None, typer.Option("--task", "-t", help="push, rope, gather or sort; else the model's own (sort for a pile).")
]
Horizon = Annotated[
    int | None, typer.Option(min=1, help="Steps that are planned; else 4 (push), 2 (rope) or 1 (gather, sort).")
]
Limit = Annotated[float, typer.Option(help="Seconds a solve may take; then the best incumbent is used.", min=0.01)]
Objects = Annotated[int, typer.Option(min=1, help="Discs to push, each to its own goal; for push only.")]
Seed = Annotated[int, typer.Option(help="Of the samplers, and of what lies where.")]


@dynamics.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model.")] = Path("out/dynamics"),
    system: Annotated[str, typer.Option("--system", "-s", help="push, rope or pile: data are simulated.")] = "push",
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="An .npz of inputs (N, in) and targets (N, out) of your own.")
    ] = None,
    relus: Annotated[int, typer.Option(help="ReLUs to keep.")] = 12,
    hidden: Annotated[list[int] | None, typer.Option(help="Width of a hidden layer; repeat. Else two of 24.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the dense training, and of the last fine-tuning.")] = 3000,
    samples: Annotated[int, typer.Option(min=10, help="Samples to simulate.")] = 40_000,
    seed: Annotated[int, typer.Option(help="Of data and weights.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model and make most of its ReLUs identities or nothing.

    Example: gossamer dynamics train --relus 12 -o out/dynamics
    """
    import torch

    from gossamer.domains.dynamics import Budget, GatedReLUMLP, files, rmse
    from gossamer.domains.dynamics.study import data_for, model_for

    torch.manual_seed(seed)
    if data is None:
        known, test = data_for(system, samples, seed)
        model = model_for(system, hidden)
    else:
        known, test = files.read_arrays(data)
        system, model = "own", GatedReLUMLP([known[0].shape[1], *(hidden or [24, 24]), known[1].shape[1]])
    say(f"{len(known[0])} samples, {model.relus} ReLUs to {relus}")
    budget = Budget(max(1, steps // 6), max(1, steps // 20), steps)
    sparse, dense = files.train(
        model, known, relus, output, steps=steps, budget=budget, seed=seed, resume=resume, say=say
    )
    files.save(output, sparse, system)
    figures = {
        "deviation": float(test[1].std()),
        "dense rmse": rmse(dense, test),
        "sparse rmse": rmse(sparse, test),
        **sparse.counts(),
    }
    if as_json:
        print_json({"folder": str(output), "system": system, **figures})
    else:
        print_table(("figure", "value"), figures.items())
        print(f"model: {output}" + ("" if data else f"   use: gossamer dynamics run --model {output}"))


@dynamics.command()
def run(
    model: Model = Path("out/dynamics"),
    task: Task = None,
    objects: Objects = 1,
    planner: Annotated[
        list[str] | None, typer.Option("--planner", "-p", help="milp, mppi, cem or gradient; repeat. Else all.")
    ] = None,
    horizon: Horizon = None,
    limit: Limit = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the closed loop.")] = 9,
    seed: Seed = 0,
    film: Annotated[Path | None, typer.Option(help="Write the closed loops as a GIF.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write their ends as a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Close the loop in the true simulator, replanning every step, with every planner on the same model.

    Discs are pushed by a pusher that begins on the wrong side; a rope is bent; granules are gathered or sorted.

    Example: gossamer dynamics run -m out/dynamics -p milp -p cem --film loop.gif
    """
    from gossamer.domains.dynamics import pictures
    from gossamer.domains.dynamics.study import closed_loops

    shown = _scene(model, task, objects, horizon, seed)
    with remarks():
        episodes = closed_loops(shown, planner, limit, steps, seed)
    rows: dict[str, dict[str, Any]] = {}
    for name, episode in episodes.items():
        away = shown.distances(episode.states)
        statuses = [plan.status for plan in episode.plans]
        rows[name] = {
            "start": away[0],
            "end": away[-1],
            "sum": away[1:].sum(),
            "arrived": shown.arrived(episode.states[-1]),
            "seconds": sum(plan.seconds for plan in episode.plans) / len(statuses),
            "plans": {status: statuses.count(status) for status in sorted(set(statuses))},
        }
    for path, draw in ((film, pictures.film), (picture, pictures.strip)):
        if path is not None:
            say(f"written: {draw(path, episodes, shown)}")
    if as_json:
        print_json(rows)
    else:
        head = (
            "planner",
            "cost at start",
            "at the end",
            "summed",
            f"of {shown.bodies} there",
            "seconds a plan",
            "plans",
        )
        print_table(head, [(name, *row.values()) for name, row in rows.items()])


@dynamics.command()
def export(
    output: Annotated[Path, typer.Argument(help="File that ends in .lp or .mps.")],
    model: Model = Path("out/dynamics"),
    task: Task = None,
    objects: Objects = 1,
    horizon: Horizon = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write the planning program of a task's start, for any other solver.

    Example: gossamer dynamics export plan.mps -m out/dynamics --horizon 5
    """
    from gossamer.domains.dynamics import MILPPlanner, write

    shown = _scene(model, task, objects, horizon, seed)
    program, _ = MILPPlanner(shown.problem, bounds="lp").program(shown.start)
    facts = {"file": str(write(program, output)), "binaries": program.binaries, "variables": len(program.cost)}
    if as_json:
        print_json(facts)
    else:
        print_table(("figure", "value"), facts.items())


def _scene(folder: Path, task: str | None, objects: int, horizon: int | None, seed: int) -> Scene:
    """The scene of a task, or of what the model was trained for."""
    from gossamer.domains.dynamics.files import load
    from gossamer.domains.dynamics.study import scene
    from gossamer.errors import ConfigError

    model, system = load(folder)
    if task is None and system == "own":
        raise ConfigError(f"{folder} holds a model of your own data; run it from Python, or name a --task that it fits")
    return scene(task or {"pile": "sort"}.get(system, system), model, objects, horizon, seed)
