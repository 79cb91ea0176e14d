"""`gossamer recipes` and `gossamer config`: the names and settings that can be typed."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table
from gossamer.cli.options import Json, Sets, Sparsity

recipes = typer.Typer(help="Published methods by name.", invoke_without_command=True)
config = typer.Typer(help="The settings of a run.", no_args_is_help=True)


@recipes.callback()
def listed(ctx: typer.Context, as_json: Json = False) -> None:
    """List the recipes with their options."""
    if ctx.invoked_subcommand is not None:
        return
    from gossamer.recipes import RECIPES

    rows = [_row(name, make) for name, make in RECIPES.items()]
    if as_json:
        print_json(rows)
    else:
        print_table(("recipe", "what it is", "options"), [list(row.values()) for row in rows])


def _row(name: str, make: Any) -> dict[str, Any]:
    from gossamer.sparsify.recipe import NAMES, encode

    defaults = {key: p.default for key, p in inspect.signature(make).parameters.items()}
    options = {key: encode(value) if type(value) in NAMES else value for key, value in defaults.items()}
    return {"name": name, "summary": (make.__doc__ or "").split("\n", 1)[0], "options": options}


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(help="A name of the list, or a YAML file.")],
    sparsity: Sparsity = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print a recipe as YAML, with options such as --set every=50."""
    import yaml

    from gossamer.report.experiment import make_recipe
    from gossamer.training.config import RecipePart, with_overrides

    part = RecipePart(name=name, options={} if sparsity is None else {"sparsity": sparsity})
    options = with_overrides(part, [f"options.{line}" for line in sets or ()]).options
    text = make_recipe(name, options).to_yaml()
    if as_json:
        print_json(yaml.safe_load(text))
    else:
        print(text, end="")


@config.command()
def schema() -> None:
    """Print the JSON schema of the settings, for editors."""
    from gossamer.training.config import json_schema

    print_json(json_schema())


@config.command("show")
def show_config(
    config: Annotated[str | None, typer.Argument(help="File of settings; none: the defaults.")] = None,
) -> None:
    """Print settings with every default filled in, checked."""
    from pathlib import Path

    from gossamer.cli.options import describe, resolve

    describe(resolve(Path(config) if config else None, ()), as_json=False)
