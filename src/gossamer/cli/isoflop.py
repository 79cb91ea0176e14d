"""`gossamer iso-flop`: what a network becomes at equal FLOPs, and the settings that train it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import DataDir, Json, use_data
from gossamer.cli.studies import numbers, settings
from gossamer.errors import ConfigError

if TYPE_CHECKING:
    from gossamer.architectures.isoflop import IsoFlop

EVERY = 100  # steps between two moves of RigL's masks, as the authors take
COUNTS = ("non-zeros", "parameters", "activations")
HEADINGS = ("family", "sparsity", "MFLOPs", "of dense", "density", *COUNTS, "RigL step")


def iso_flop(
    model: Annotated[str, typer.Option("--model", "-m", help="Model, or package.module:callable.")] = "resnet-18",
    data: Annotated[str | None, typer.Option("--data", "-d", help="Data set, for the shape and to train on.")] = None,
    shape: Annotated[str | None, typer.Option("--shape", metavar="C,H,W", help="Of one input, without data.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Of the output, beside --shape.")] = 10,
    family: Annotated[
        list[str] | None, typer.Option(help="wide, parallel, factorized or doped; may be repeated. Default: all.")
    ] = None,
    sparsities: Annotated[str, typer.Option("--sparsity", help="Of the layers, with commas.")] = "0.5,0.75,0.9",
    method: Annotated[str, typer.Option(help="Of the recipe that -o writes: rigl, set or static.")] = "rigl",
    everything: Annotated[bool, typer.Option("--all-layers", help="Stem and classifier become sparse too.")] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=JSON", help="base_options, layer, exclude or data_options."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write config.yaml and recipe.yaml for `gossamer train`.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make every layer larger and sparse at the FLOPs of the dense network, and say what that costs elsewhere.

    With one family, one sparsity, --data and -o the settings of a training are written; nothing is trained here.

    Example: gossamer iso-flop --model mlp --data digits --family wide --sparsity 0.75 -o out/iso
    """
    from gossamer.architectures.isoflop import FAMILIES
    from gossamer.architectures.isoflop.build import transformed

    use_data(data_dir)
    given = settings(sets)
    own = _source(model, data, shape, classes, given.pop("data_options", {}))
    kind, where = own.pop("kind"), own.pop("data")
    options = own | _known(given) | ({"first_dense": False, "last_dense": False} if everything else {})
    asked = [(name, level) for name in family or FAMILIES for level in numbers(sparsities)]
    if output is not None and (data is None or len(asked) != 1):
        raise ConfigError("-o writes one training: name --data, one --family and one --sparsity")
    rows: list[dict[str, Any]] = []
    found: IsoFlop | None = None
    for name, level in asked:
        try:
            found = transformed(family=name, sparsity=level, **options)
            rows.append(_row(found))
        except ConfigError as error:
            if len(asked) == 1 or name not in FAMILIES:
                raise
            say(f"note: {error}")
    if not rows or found is None:
        raise ConfigError(f"no family fits {model} at {sparsities}; see the notes")
    written = None
    if output is not None:
        settled = options | {"family": asked[0][0], "sparsity": asked[0][1]}
        written = _write(output, found, method, kind, where, settled)
    if as_json:
        print_json({"rows": rows, "config": written and str(written)})
        return
    print_table(HEADINGS, _cells(found, rows), model)
    print("RigL step: FLOPs of a training step, mean over its updates, as a multiple of a dense step's.")
    if written:
        print(f"next: gossamer train --config {written} -o out/{asked[0][0]}")


def _source(model: str, data: str | None, shape: str | None, classes: int, options: Any) -> dict[str, Any]:
    """Shape and classes of the data set, or those that were given."""
    from gossamer.data import load

    if (data is None) == (shape is None):
        raise ConfigError("say what the inputs are by either --data or --shape, such as --shape 3,32,32")
    if data is not None:
        found = load(data, **options)
        sizes, classes, kind = tuple(found.shape), found.classes, found.kind
    else:
        try:
            sizes = tuple(int(word) for word in (shape or "").split(","))
        except ValueError as error:
            raise ConfigError(f"--shape is whole numbers with commas, such as 3,32,32, not {shape!r}") from error
        kind = "language" if model == "llama" else "classification"
    tokens = {"tokens": True} if kind == "language" else {}
    return {"base": model, "shape": sizes, "classes": classes, "kind": kind, "data": (data, options), **tokens}


def _known(given: dict[str, Any]) -> dict[str, Any]:
    from gossamer.errors import unknown

    names = ("base_options", "layer", "exclude")
    for name in given:
        if name not in names:
            raise unknown("setting of iso-flop", name, (*names, "data_options"))
    return given


def _row(iso: IsoFlop) -> dict[str, Any]:
    """The figures of one transformed network; costs of training are relative to the dense network's."""
    _, large = iso.table()
    sparse, dense, before = iso.after.at(iso.densities), iso.after.dense, iso.before.dense
    step = (3 * sparse * EVERY + 2 * sparse + dense) / (EVERY + 1)
    return {
        "family": iso.family,
        "sparsity": iso.sparsity,
        "flops": sparse,
        "ratio": iso.ratio,
        "density": iso.density,
        **{name: large[name] for name in COUNTS},
        "rigl_step": step / (3 * before),
    }


def _cells(iso: IsoFlop, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    plain, _ = iso.table()
    dense = ["dense", "", f"{plain['mega FLOPs']:.4g}", "1", "1", *(f"{plain[n]:,}" for n in COUNTS), "1"]
    return [dense] + [
        [
            row["family"],
            f"{row['sparsity']:g}",
            f"{row['flops'] / 1e6:.4g}",
            f"{row['ratio']:.4f}",
            f"{row['density']:.3f}",
            *(f"{row[name]:,}" for name in COUNTS),
            f"{row['rigl_step']:.3f}",
        ]
        for row in rows
    ]


def _write(folder: Path, iso: IsoFlop, method: str, kind: str, data: tuple[str, Any], options: dict[str, Any]) -> Path:
    """Recipe and settings of a training; the recipe holds the density of every layer."""
    import yaml

    from gossamer.architectures.isoflop import iso_recipe
    from gossamer.architectures.isoflop.build import PATH
    from gossamer.runs.files import write_text
    from gossamer.training.config import Config

    recipe = iso_recipe(iso, method)
    options = options | {"shape": list(options["shape"])}
    values: dict[str, Any] = {
        "task": kind,
        "data": {"name": data[0], "options": data[1]},
        "model": {"name": PATH, "options": options},
        "recipe": {"name": str(folder / "recipe.yaml")},
    }
    config = Config(**values)
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return folder / "config.yaml"
