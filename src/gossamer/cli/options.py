"""Options that several commands share, and the configuration that they add up to."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gossamer.training.config import Config

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="YAML", help="File of settings.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="A.B=VALUE", help="One setting; may be repeated.")
]
RecipeName = Annotated[str | None, typer.Option("--recipe", "-r", help="Method, or a recipe's YAML file.")]
ModelName = Annotated[str | None, typer.Option("--model", "-m", help="Model, or package.module:callable.")]
DataName = Annotated[str | None, typer.Option("--data", "-d", help="Data set.")]
Sparsity = Annotated[float | None, typer.Option("--sparsity", help="Fraction of zeros, for recipes that take one.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Optimiser steps.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of weights, masks and order of the data.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that holds data sets, searched first.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that lies in the output folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the settings; write nothing.")]


def resolve(
    file: Path | None,
    sets: Sequence[str] | None,
    *,
    recipe: str | None = None,
    model: str | None = None,
    data: str | None = None,
    sparsity: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> Config:
    """The configuration: defaults, then the file, then the shortcuts, then each `--set` in order.

    Another recipe, model or data set than the file's starts from its own defaults, without the file's options.

    Raises:
        ConfigError: as `load_config` does.
    """
    from gossamer.training.config import Config, load_config, with_overrides

    values = load_config(file, kind=Config).model_dump(mode="json")
    for part, name in (("recipe", recipe), ("model", model), ("data", data)):
        if name is not None and values[part]["name"] != name:
            values[part] = {"name": name, "options": {}}
    if sparsity is not None:
        values["recipe"]["options"]["sparsity"] = sparsity
    train: dict[str, Any] = {"steps": steps, "seed": seed, "device": device}
    values["train"] |= {key: value for key, value in train.items() if value is not None}
    config = with_overrides(Config(**values), sets or ())
    if ":" in config.model.name and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` would: a user's own model lies in the current folder
    return config


def use_data(folder: Path | None) -> None:
    """Search `folder` first for data sets, here and in processes that are started from here.

    Raises:
        DataError: no such folder.
    """
    if folder is None:
        return
    from gossamer.data import use_folder
    from gossamer.data.locate import VARIABLE

    use_folder(folder)
    os.environ[VARIABLE] = os.pathsep.join([str(folder.resolve()), *filter(None, [os.environ.get(VARIABLE)])])


def describe(config: Config, as_json: bool) -> None:
    """Print a configuration, as YAML that `--config` reads, or as JSON."""
    import yaml

    from gossamer.cli.console import print_json

    values = config.model_dump(mode="json")
    if as_json:
        print_json(values)
    else:
        print(yaml.safe_dump(values, sort_keys=False), end="")
