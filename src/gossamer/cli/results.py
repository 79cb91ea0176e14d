"""`gossamer compare`, `report` and `lint`: what finished runs say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossamer.cli.console import print_json, say
from gossamer.cli.options import Json

if TYPE_CHECKING:
    from gossamer.report.card import Comparison

Paths = Annotated[list[Path], typer.Argument(help="Run folders, folders of runs, or one comparison.json.")]
Title = Annotated[str | None, typer.Option(help="Above the table.")]
Control = Annotated[str, typer.Option(help="The arm that the others are compared with.")]


def collected(paths: list[Path], title: str | None, control: str, command: str) -> Comparison:
    """The comparison of all finished runs below the paths; unfinished ones are named on stderr.

    Raises:
        DataError, ConfigError: see `report.collect`.
    """
    from gossamer.report.card import Comparison
    from gossamer.report.collect import compared, outcomes

    if len(paths) == 1 and paths[0].is_file():
        return Comparison.load(paths[0])
    runs, remarks = outcomes(paths)
    for remark in remarks:
        say(f"left out: {remark}")
    line = " ".join([command, *map(str, paths)])
    shown = compared(runs, title=title or "Comparison", command=line, control=control)
    names = [card.method for card in shown.cards]
    if control not in names and control != "dense":
        from gossamer.errors import unknown

        raise unknown("arm", control, names)
    return shown


def compare(
    paths: Paths,
    form: Annotated[str, typer.Option("--format", "-f", help="rich, md, latex or csv.")] = "rich",
    title: Title = None,
    control: Control = "dense",
    as_json: Json = False,
) -> None:
    """Compare finished runs in a table: quality with its spread over seeds, sparsity, costs.

    Runs that differ only in the seed are one arm.

    Example: gossamer compare out/sweep --format latex
    """
    from gossamer.report.compare import plain_rows, table

    shown = collected(paths, title, control, "gossamer compare")
    if as_json:
        print_json({"title": shown.title, "control": shown.control, "rows": plain_rows(shown)})
    else:
        print(table(shown, form), end="")


def report(
    paths: Paths,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: report.html in the folder.")] = None,
    title: Title = None,
    control: Control = "dense",
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about finished runs, and print its path.

    Example: gossamer report out/train
    """
    from gossamer.report.page import write

    first = paths[0]
    target = output or (first if first.is_dir() else first.parent) / "report.html"
    shown = collected(paths, title or str(first), control, "gossamer report")
    write(shown, target)
    if as_json:
        print_json({"page": str(target), "arms": [card.method for card in shown.cards]})
    else:
        print(target)


def lint(paths: Paths, control: Control = "dense", as_json: Json = False) -> None:
    """Check that runs are sound (E rules) and fairly compared (W rules). Exit code 1 where an E rule is broken.

    Example: gossamer lint out/sweep
    """
    from gossamer.report.lint import RULES
    from gossamer.report.lint import lint as check

    findings = check(collected(paths, None, control, "gossamer lint").cards)
    if as_json:
        print_json([{"code": f.code, "level": f.level, "message": f.message} for f in findings])
    else:
        for finding in findings:
            print(finding)
        say(f"{len(findings)} findings of {len(RULES)} rules")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
