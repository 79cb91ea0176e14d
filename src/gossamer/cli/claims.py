"""`gossamer reproduce` and `papers`: what is claimed, and what was measured here."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say, text
from gossamer.cli.options import DataDir, Json, use_data
from gossamer.errors import ConfigError

BAD_FIRST = (1, 3, 0)  # of several papers, the exit code that says most


def reproduce(
    slug: Annotated[str | None, typer.Argument(help="The paper, as `gossamer papers` names it.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of every claim; default: each claim's own.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds; nothing is recorded.")] = False,
    claim: Annotated[list[str] | None, typer.Option(help="Only this claim; may be repeated.")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Every paper without an up-to-date record.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at once; default: one per core.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run the claims of a paper: published figure, measured figure with its spread, threshold, verdict.

    Exit code 0: every asserted claim holds; 1: one does not; 3: one could not run (data or an extra is missing).
    """
    from gossamer import claims

    if stale == (slug is not None):
        raise ConfigError("give the paper to reproduce, or --stale for all whose record is missing or out of date")
    if stale and claim:
        raise ConfigError("--claim needs a paper, not --stale")
    use_data(data_dir)
    slugs = [slug] if slug else [row["slug"] for row in claims.listing() if row["stale"] is not False]
    options: dict[str, Any] = {"claims": tuple(claim or ()), "workers": workers or os.cpu_count() or 1}
    found = []
    for name in slugs:
        say(f"reproducing {name}")
        found.append(claims.reproduce(name, seeds, quick, **options, say=say))
        if not as_json:
            show(found[-1])
    if as_json:
        print_json(found if stale else found[0])
    elif not found:
        print("every record is up to date")
    codes = {claims.exit_code(outcome) for outcome in found} | ({0} if not found else set())
    raise typer.Exit(next(code for code in BAD_FIRST if code in codes))


def show(outcome: dict[str, Any]) -> None:
    """The claims of one paper as a table, and its verdict."""
    headings = ("claim", "kind", "statement", "published", "measured", "±", "threshold", "seeds", "holds")
    keys = ("id", "kind", "statement", "published", "measured", "spread", "threshold", "seeds", "holds")
    rows = [[row[key] for key in keys] for row in outcome["claims"]]
    print_table(headings, rows, f"{outcome['slug']}: {verdict(outcome['holds'])}, {outcome['seconds']:.0f} s")
    for row in outcome["claims"]:
        if row["holds"] is not True:
            print(f"{row['id']}: {row['why']}")


def verdict(holds: bool | None) -> str:
    return {True: "holds", False: "does not hold", None: "could not run"}[holds]


def papers(as_json: Json = False) -> None:
    """List the published systems with what was last measured here."""
    from gossamer import claims

    listing = claims.listing()
    if as_json:
        print_json(listing)
        return
    rows = [[row["slug"], row["title"], row["year"], row["kind"], _counted(row), _when(row)] for row in listing]
    print_table(("slug", "title", "year", "kind", "asserted claims", "measured on"), rows)


def _counted(row: dict[str, Any]) -> str:
    asserted = [claim["holds"] for claim in row["claims"] if claim["kind"] == "asserted"]
    return "not yet run" if row["measured_on"] is None else f"{asserted.count(True)} of {len(asserted)} hold"


def _when(row: dict[str, Any]) -> str:
    return f"{text(row['measured_on'])}{', code changed since' if row['stale'] else ''}"
