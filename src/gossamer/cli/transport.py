"""`gossamer transport`: recolour pictures and match tables by sparse optimal transport."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table
from gossamer.cli.options import Json

transport = typer.Typer(help="Sparsity-constrained optimal transport.", no_args_is_help=True)

K = Annotated[int, typer.Option("--k", "-k", min=1, help="Most sources of each target.")]
Exact = Annotated[
    bool, typer.Option("--exact", help="The cheapest plan in the place of a limited one, by POT (extra transport).")
]
Gamma = Annotated[float, typer.Option(help="Weight of the squared norm; smaller is closer to exact transport.")]


@transport.command()
def colours(
    source: Annotated[Path, typer.Argument(help="Picture to recolour.")],
    target: Annotated[Path, typer.Argument(help="Picture whose colours it gets.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The recoloured picture.")] = Path("recoloured.png"),
    k: K = 4,
    gamma: Gamma = 1.0,
    exact: Exact = False,
    palette: Annotated[int, typer.Option(min=1, help="Colours of each palette.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the palettes.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Page (.html) that shows before and after.")] = None,
    as_json: Json = False,
) -> None:
    """Give a picture the colours of another; each target colour is made of at most k source colours.

    Example: gossamer transport colours photo.png sunset.png -k 4 -o warm.png --report page.html
    """
    from dataclasses import replace

    from gossamer.domains.superres.page import write_page
    from gossamer.domains.superres.pictures import read_picture, write_picture
    from gossamer.transport import KSparse, Unregularised, colour_transfer

    before, wanted = read_picture(source), read_picture(target)
    reg = Unregularised() if exact else KSparse(k, gamma)
    done = colour_transfer(before.rgb, wanted.rgb, reg, colours=palette, seed=seed)
    write_picture(output, replace(before, rgb=done.picture, grey=False))
    found = done.transport
    figures = {
        "entries of the plan": int((found.plan > 0).sum()),
        "most sources of a colour": int(found.nonzeros.max()),
        "cost": float(found.cost),
        "row error": float(found.row_error),
        "column error": float(found.column_error),
        "converged": bool(found.converged),
    }
    if report is not None:
        pictures = {"before": before.rgb, "after": done.picture}
        facts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in figures.items()}
        command = shlex.join(["gossamer", *sys.argv[1:]])
        write_page(report, f"{source.name} in the colours of {target.name}", pictures, facts, command)
    if as_json:
        print_json(
            {"output": str(output), "report": str(report) if report else None, "status": found.status, **figures}
        )
    else:
        print_table(("figure", "value"), figures.items())
        print(f"{_said(found)}\npicture: {output}" + (f"   page: {report}" if report else ""))


@transport.command()
def match(
    first: Annotated[
        Path, typer.Argument(help="CSV file of numbers, one row a thing; a first line of names is skipped.")
    ],
    second: Annotated[Path, typer.Argument(help="CSV file with the same columns.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file of pairs.")] = Path("pairs.csv"),
    k: K = 2,
    gamma: Gamma = 0.1,
    exact: Exact = False,
    picture: Annotated[
        Path | None, typer.Option(help="Picture (.png) of the pairs, and of those without a limit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Match the rows of two tables: each row of the second with at most k rows of the first, all mass shared out.

    A small k may not be able to share it out: the row error is the share of mass that is missing or too much in the
    rows of the first table. --exact gives the cheapest plan instead.

    Columns are scaled to unit deviation, the cost is the squared distance divided by its largest value. The pairs file
    has the columns first, second (row numbers from 0) and share of the second row's mass. The picture shows both tables
    in the plane of their first two principal directions.

    Example: gossamer transport match customers.csv records.csv -k 2 -o pairs.csv --picture pairs.png
    """
    import torch

    from gossamer.errors import DataError
    from gossamer.runs.files import write_text
    from gossamer.transport import KSparse, Quadratic, Unregularised, solve_ot

    x, y = _table(first), _table(second)
    if x.shape[1] != y.shape[1]:
        raise DataError(f"{first} has {x.shape[1]} columns, {second} has {y.shape[1]}")
    scale = torch.cat([x, y]).std(0).clamp(min=1e-12)
    cost = torch.cdist(x / scale, y / scale).square()
    cost = cost / cost.max().clamp(min=1e-12)
    found = solve_ot(cost, reg=Unregularised() if exact else KSparse(k, gamma))
    share = found.plan / found.plan.sum(0, keepdim=True)
    pairs = [(int(i), int(j), float(share[i, j])) for j, i in (found.plan.t() > 0).nonzero().tolist()]
    write_text(output, "first,second,share\n" + "".join(f"{i},{j},{s:.6g}\n" for i, j, s in pairs))
    if picture is not None:
        from gossamer.report.matching import plot_matching

        plans = {"exact" if exact else f"k = {k}": found.plan, "no limit": solve_ot(cost, reg=Quadratic(gamma)).plan}
        plot_matching(x / scale, y / scale, plans, picture)
    figures = {"pairs": len(pairs), "row error": float(found.row_error), "converged": bool(found.converged)}
    if as_json:
        shown = None if picture is None else str(picture)
        print_json({"output": str(output), "picture": shown, "status": found.status, **figures})
    else:
        print_table(("figure", "value"), figures.items())
        print(f"{_said(found)}\npairs: {output}" + (f"   picture: {picture}" if picture else ""))


def _said(found: Any) -> str:
    """The status, for someone at a shell."""
    if bool(found.converged.all()):
        return str(found.status)
    errors = f"{float(found.row_error):.2g} of the mass is missing or too much in the rows"
    return f"not converged: {errors}. Take a larger -k or --gamma, or --exact, which has no limit"


def _table(path: Path) -> Any:
    """(rows, columns) float64 of a CSV file."""
    import numpy as np
    import torch

    from gossamer.errors import DataError

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        try:
            values = np.loadtxt(lines, delimiter=",", ndmin=2)
        except ValueError:
            values = np.loadtxt(lines[1:], delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as a table of numbers: {error}") from error
    if not values.size or not np.isfinite(values).all():
        raise DataError(f"{path} is empty or holds NaN or infinity")
    return torch.from_numpy(values)
