"""`gossamer prune`: mask a trained model once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.console import print_json, say
from gossamer.cli.options import (
    ConfigFile,
    DataDir,
    DataName,
    DryRun,
    Json,
    ModelName,
    Overwrite,
    Seed,
    Sets,
    describe,
    resolve,
    use_data,
)
from gossamer.cli.train import show
from gossamer.errors import ConfigError, DataError, unknown

SCORES = ("magnitude", "random", "snip", "grasp", "synflow")  # recipes that mask once
PLAIN = "unstructured"
SCORE_DATA = ("snip", "grasp")  # those that need batches


def prune(
    source: Annotated[Path, typer.Argument(help="Folder of a saved model or run, or a safetensors file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned model.")] = Path("out/prune"),
    sparsity: Annotated[float, typer.Option(help="Fraction of zeros; N:M patterns imply their own.")] = 0.9,
    score: Annotated[str, typer.Option(help=f"What to keep by: {', '.join(SCORES)}.")] = "magnitude",
    pattern: Annotated[str, typer.Option(help="unstructured, 2:4, block:4x1, rows, cols.")] = PLAIN,
    allocation: Annotated[str | None, typer.Option(help="Over the layers: global, uniform, er, erk, ...")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Prune these weights only (name pattern).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave these weights dense (name pattern).")] = None,
    model: ModelName = None,
    data: DataName = None,
    config: ConfigFile = None,
    sets: Sets = None,
    seed: Seed = None,
    batches: Annotated[int, typer.Option(min=1, help="Training batches to recalibrate batch statistics.")] = 20,
    data_dir: DataDir = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Prune a trained model in one shot, recalibrate its batch statistics and measure it before and after.

    The folder of a run brings its own model and data; a file needs --model, and --data to be measured.

    Example: gossamer prune out/dense --sparsity 0.8 --exclude 'head.*' -o out/pruned
    """
    import yaml

    from gossamer.report.experiment import make_recipe
    from gossamer.report.oneshot import prune as prune_saved
    from gossamer.training.config import RecipePart

    if score not in SCORES:
        raise unknown("score", score, SCORES)
    weights = find_weights(source)
    own = weights.with_name("config.yaml")
    known = config or (own if own.exists() else None)
    if known is None and model is None:
        raise ConfigError(f"{source} does not say which model it is of; give --model or --config")
    share = yaml.safe_load(allocation) if allocation else None  # a name, or a part with its fields
    options = {"pattern": pattern, "allocation": share, "only": only, "exclude": exclude}
    chosen = {"sparsity": sparsity} | {key: value for key, value in options.items() if value and value != PLAIN}
    settings = resolve(known, sets, model=model, data=data, seed=seed)
    settings = settings.model_copy(update={"recipe": RecipePart(name=score, options=chosen)})
    make_recipe(score, chosen)
    use_data(data_dir)
    with_data = known is not None or data is not None
    if not with_data and score in SCORE_DATA:
        raise DataError(f"the score {score} needs data; give --data")
    if dry_run:
        describe(settings, as_json)
        return
    outcome = prune_saved(settings, weights, output, with_data=with_data, batches=batches, overwrite=overwrite)
    if outcome["recalibrated"]:
        say(f"batch statistics recalibrated on {outcome['recalibrated']} batches")
    if as_json:
        print_json({"folder": str(output), **outcome})
        return
    show(outcome)
    for name, value in (outcome["before"] or {}).items():
        print(f"test {name}: {value:.4f} before, {outcome['fit']['test'][name]:.4f} after")
    print(f"model: {output / 'model.safetensors'}")


def find_weights(source: Path) -> Path:
    """The safetensors file that `source` is, or that the folder holds.

    Raises:
        DataError: there is none. ConfigError: a file that would have to be unpickled.
    """
    from gossamer.cli.inspect import refuse_pickle

    if source.is_dir():
        source = source / "model.safetensors"
    if not source.is_file():
        raise DataError(f"{source} does not exist; name a folder with model.safetensors, or a safetensors file")
    refuse_pickle(source)
    return source
