"""`gossamer unlearn`: a deletion request on a trained network, with its audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import ConfigFile, DataDir, DryRun, Json, Overwrite, Seed, Sets, resolve, use_data
from gossamer.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from gossamer.data import Dataset
    from gossamer.reuse.unlearning import ForgetSplit
    from gossamer.training.config import Config

FORGOTTEN = "forgotten.json"  # beside a model: which samples it must not see again

Option = Annotated[
    list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="Setting of the method; repeatable.")
]


def unlearn(
    source: Annotated[Path, typer.Argument(help="Folder of a run of `gossamer train`, or a safetensors file.")],
    classes: Annotated[list[int] | None, typer.Option("--class", help="Forget this class; may be repeated.")] = None,
    indices: Annotated[
        Path | None, typer.Option(help="Forget the training samples of this file, one number a line.")
    ] = None,
    random: Annotated[float | None, typer.Option(help="Forget this share of the samples, drawn by the seed.")] = None,
    method: Annotated[str, typer.Option("--method", help="retrain, ft, ga, rl, ff, iu, l1, or in full.")] = "l1",
    option: Option = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Retrain too, as trained, to measure the gap.")] = False,
    dense_retrain: Annotated[bool, typer.Option("--dense-retrain", help="And a dense network.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of model and audit.")] = Path("out/unlearn"),
    config: ConfigFile = None,
    sets: Sets = None,
    seed: Seed = None,
    data_dir: DataDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what lies in the output folder.")] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a trained classifier forget some training samples; write the new model, audit.json and audit.html.

    Rates and penalties are the paper's, for some thousand steps; with fewer steps raise them (-O lr=0.05 -O
    gamma=2e-3). Masks beside the model, or else its exact zeros, stay. The result is a source of the next request:
    what was forgotten before is forgotten again, never retained.

    Example: gossamer unlearn out/train --class 3 --method l1 -O gamma=2e-3 -O lr=0.05 --retrain -o out/request
    """
    from gossamer.cli.prune import find_weights
    from gossamer.data import load
    from gossamer.models import build, load_weights
    from gossamer.reuse.unlearning import ForgetSplit, Retrain, make_method
    from gossamer.reuse.unlearning import unlearn as forget
    from gossamer.runs.model_files import save_model

    chosen = make_method(method, _options(option))
    weights = find_weights(source)
    own = weights.with_name("config.yaml")
    known = config or (own if own.exists() else None)
    if known is None:
        raise ConfigError(f"{source} does not say which model and data it is of; give --config")
    settings = resolve(known, sets, seed=seed)
    if settings.task != "classification":
        raise ConfigError(f"only classifiers can unlearn so far; {source} is of the task {settings.task!r}")
    use_data(data_dir)
    data = load(settings.data.name, **{"seed": settings.train.seed, **settings.data.options})
    split = _split(data, classes, indices, random, settings.train.seed)
    before = _forgotten(weights.parent, settings)
    if before:
        split = ForgetSplit.by_index(data, sorted({*before, *_indices_of(split)}))
        say(f"{len(before)} samples of earlier requests are left out too")
    say(f"{split.scenario}: {split.forget.samples} samples to forget, {split.retain.samples} stay")
    if dry_run:
        return
    if (output / "audit.json").exists() and not (overwrite or resume):
        raise CheckpointError(f"{output} holds an audit already; choose another folder or --overwrite")
    model = build(settings.model.name, **_model_options(settings, data))
    load_weights(model, weights)
    masks = _masks(weights)
    common: dict[str, Any] = {"seed": settings.train.seed, "device": settings.train.device, "progress": True}
    again = Retrain(train=settings.train)
    references = {}
    for name, wanted, kept in (("retrain", retrain, masks), ("dense retrain", dense_retrain, None)):
        if wanted:
            say(f"{name}: {settings.train.steps} steps")
            references[name] = forget(model, split, method=again, masks=kept, **common)[0]
    run = output / "run" if hasattr(chosen, "epochs") else None
    if run is not None and overwrite and not resume:
        _clear(run)
    made, report = forget(
        model, split, method=chosen, masks=masks, references=references, run=run, resume=resume, **common
    )
    kept = masks if isinstance(masks, dict) else {}
    save_model(output, made.cpu(), {name: mask.cpu() for name, mask in kept.items()}, {"unlearned": report.request})
    _remember(output, settings, split)
    record, page = report.save(output)
    if as_json:
        print_json({"folder": str(output), "page": str(page), **report.as_json()})
        return
    print_table(("", "UA", "MIA", "RA", "TA", "gap", "seconds"), report.rows(), report.scenario)
    for remark in report.remarks:
        say(f"note: {remark}")
    print(f"model: {output / 'model.safetensors'}   audit: {record}   page: {page}")


def _indices_of(split: ForgetSplit) -> list[int]:
    """Where the forgotten samples lie in the training set."""
    from gossamer.data.dataset import Subset

    source = split.forget.source
    assert isinstance(source, Subset)
    found: list[int] = source.indices.tolist()
    return found


def _remember(folder: Path, settings: Config, split: ForgetSplit) -> None:
    """Write what the next command needs: the settings of the model, and what it has forgotten."""
    import yaml

    from gossamer.runs.files import write_json, write_text

    write_text(folder / "config.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    write_json(folder / FORGOTTEN, {"data": settings.data.model_dump(mode="json"), "indices": _indices_of(split)})


def _forgotten(folder: Path, settings: Config) -> list[int]:
    """The samples that earlier requests took from the model in `folder`.

    Raises:
        CheckpointError: a damaged list. ConfigError: a list of samples of other data.
    """
    import json

    path = folder / FORGOTTEN
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        data, indices = record["data"], [int(index) for index in record["indices"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it says what the model beside it forgot") from error
    if data != settings.data.model_dump(mode="json"):
        raise ConfigError(f"{path} lists samples of {data}, not of {settings.data.name} with these options")
    return indices


def _options(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; values are YAML, and numbers such as 2e-3 are numbers too."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise ConfigError(f"a setting of the method has the form name=value, not {pair!r}")
        try:
            values[name] = float(text) if "e" in text.lower() else yaml.safe_load(text)
        except ValueError:
            values[name] = yaml.safe_load(text)
    return values


def _split(
    data: Dataset, classes: list[int] | None, indices: Path | None, share: float | None, seed: int
) -> ForgetSplit:
    from gossamer.reuse.unlearning import ForgetSplit

    asked = [bool(classes), indices is not None, share is not None]
    if sum(asked) != 1:
        raise ConfigError("say what to forget by exactly one of --class, --indices and --random")
    if classes:
        return ForgetSplit.by_class(data, classes)
    if share is not None:
        return ForgetSplit.at_random(data, share, seed=seed)
    assert indices is not None
    try:
        words = indices.read_text(encoding="utf-8").split()
        return ForgetSplit.by_index(data, [int(word) for word in words])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list of samples {indices}: {error}") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{indices} must hold whole numbers, one a line: {error}") from error


def _model_options(settings: Config, data: Dataset) -> dict[str, Any]:
    options = dict(settings.model.options)
    return options if ":" in settings.model.name else {"shape": data.shape, "classes": data.classes, **options}


def _masks(weights: Path) -> Any:
    """The masks that were saved with the model, or the rule to keep exact zeros."""
    from gossamer.runs.model_files import load_sparsity

    if not weights.with_name("masks.safetensors").exists():
        return "zeros"
    return load_sparsity(weights.parent)[0]


def _clear(run: Path) -> None:
    from gossamer.runs.folder import RunFolder

    if run.exists():
        RunFolder(run).clear()
