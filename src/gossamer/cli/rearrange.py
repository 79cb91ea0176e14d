"""`gossamer rearrange`: channels of a trained model in an order that suits blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.console import print_json, say
from gossamer.cli.options import Json, ModelName
from gossamer.cli.saved import Shape, Source, new_folder, save_changed, saved_model


def rearrange(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")] = Path("out/rearranged"),
    sparsity: Annotated[float, typer.Option(help="At which blocks will be pruned, in [0, 1).")] = 0.5,
    block: Annotated[int, typer.Option(help="Output channels of a block: 2, 4, 8 or 16.")] = 4,
    balanced: Annotated[bool, typer.Option("--balanced", help="As many weights in each strip of channels.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Prune in blocks afterwards, once, by magnitude.")] = False,
    passes: Annotated[int, typer.Option(min=0, help="Of the search, at most.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the gain of each layer (.png or .svg).")] = None,
    model: ModelName = None,
    shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Put channels that need the same inputs side by side: blocks of weights then keep more, and the function stays.

    Example: gossamer rearrange out/train --block 8 --sparsity 0.3 --prune -o out/blocks --picture out/gain.png
    """
    from gossamer.runs.files import write_json
    from gossamer.sparsify.rearrange import rearrange as find_orders
    from gossamer.sparsify.strips import layer_patterns, prune_strips_

    given = saved_model(source, model, shape, 2)
    network, example = given.model, given.example
    new_folder(output, given)
    layers = layer_patterns(network, block, balanced=balanced)
    say(f"{len(layers.patterns)} layers in blocks, {len(layers.dense)} dense")
    found = find_orders(network, example, layers.patterns, sparsity, passes=passes, seed=seed)
    moved = found.apply(network)
    if prune:
        prune_strips_(moved, layers.patterns, sparsity)
    save_changed(output, moved, given)
    record = found.as_json() | {"block": block, "pruned": prune, "dense": layers.dense}
    write_json(output / "rearrangement.json", record)
    if picture is not None:
        from gossamer.report.rearrangement import picture as draw

        draw(found, picture)
    if as_json:
        print_json({"folder": str(output), "picture": str(picture) if picture else None, **record})
    else:
        print(found)
        print(f"model: {output / 'model.safetensors'}" + (f"   picture: {picture}" if picture else ""))
