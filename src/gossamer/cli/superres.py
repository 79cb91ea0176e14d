"""`gossamer superres`: train, measure and use sparse super-resolution networks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json, Overwrite

superres = typer.Typer(help="Super-resolution with sparse networks.", no_args_is_help=True)

Model = Annotated[Path, typer.Option("--model", "-m", help="Folder of a network that `superres train` made.")]
Tile = Annotated[int | None, typer.Option(min=8, help="Work in squares of so many pixels, to bound the memory.")]
High = Annotated[Path, typer.Option("--data", "-d", help="Folder of high-resolution pictures.")]
Low = Annotated[Path | None, typer.Option(help="Folder of the low-resolution ones; else they are made.")]


@superres.command()
def upscale(
    picture: Annotated[Path, typer.Argument(help="Picture: RGB or grey, also with transparency or 16 bits.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The larger picture.")] = Path("upscaled.png"),
    tile: Tile = None,
    report: Annotated[Path | None, typer.Option(help="Page (.html) that shows before and after.")] = None,
    as_json: Json = False,
) -> None:
    """Upscale a picture.

    Example: gossamer superres upscale photo.png --model out/superres -o large.png --report page.html
    """
    from gossamer.domains.superres import bicubic, load, read_picture, upscale_picture, write_picture
    from gossamer.domains.superres.page import write_page

    network = load(model)
    scale = int(network.scale)  # type: ignore[arg-type]
    before = read_picture(picture)
    started = time.perf_counter()
    after = upscale_picture(network, before, scale, tile)
    seconds = time.perf_counter() - started
    write_picture(output, after)
    weights = [p for p in network.parameters() if p.ndim > 1]
    zeros = 1 - sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)
    facts = {
        "pixels": f"{before.rgb.shape[2]} x {before.rgb.shape[1]} to {after.rgb.shape[2]} x {after.rgb.shape[1]}",
        "zeros among the weights": f"{100 * zeros:.1f} %",
        "seconds": f"{seconds:.2f}",
    }
    if report is not None:
        images = {"before: bicubic": bicubic(before.rgb, scale).clamp(0, 1), "after: network": after.rgb}
        command = f"gossamer superres upscale {picture} --model {model} --output {output} --report {report}"
        write_page(report, f"{picture.name}, {scale} times as large", images, facts, command)
    if as_json:
        print_json({"output": str(output), "scale": scale, "report": str(report) if report else None, **facts})
    else:
        print_table(("figure", "value"), facts.items())
        print(f"picture: {output}" + (f"   page: {report}" if report else ""))


@superres.command()
def evaluate(model: Model, data: High, low: Low = None, tile: Tile = None, as_json: Json = False) -> None:
    """Measure a network against bicubic interpolation: PSNR and SSIM on luma, border cut by the scale."""
    from gossamer.domains.superres import bicubic_by, load, read_pairs
    from gossamer.domains.superres import evaluate as measure

    network = load(model)
    scale = int(network.scale)  # type: ignore[arg-type]
    pairs = read_pairs(data, scale, low)
    scores = {"network": measure(network, pairs, scale, tile), "bicubic": measure(bicubic_by(scale), pairs, scale)}
    if as_json:
        print_json({name: {"psnr": s.psnr, "ssim": s.ssim, "pictures": s.pictures} for name, s in scores.items()})
    else:
        print_table(("", "PSNR", "SSIM", "pictures"), [(n, s.psnr, s.ssim, s.pictures) for n, s in scores.items()])


@superres.command()
def train(
    data: High,
    low: Low = None,
    network: Annotated[str, typer.Option(help="Name of a network.")] = "edsr-small",
    scale: Annotated[int, typer.Option(help="2, 3, 4 or 8.")] = 2,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Method.")] = "iss_p",
    sparsity: Annotated[float, typer.Option(help="Fraction of zeros in every layer but the last ones.")] = 0.9,
    half_life: Annotated[
        float | None, typer.Option(help="Steps in which a low weight halves (iss_p); the authors' alpha makes 13.5.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps; the authors take 300000.")] = 2000,
    patch: Annotated[int, typer.Option(help="Side of the high-resolution patches in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Patches in a batch.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 2e-4,
    seed: Annotated[int, typer.Option(help="Of weights and patches.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first so many pictures.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run and the network.")] = Path(
        "out/superres"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a sparse network on a folder of pictures, from random weights.

    Example: gossamer superres train --data DIV2K_train_HR --network swinir-light --scale 4 --patch 256 --batch 32
    """
    import torch

    from gossamer.domains.superres import build, read_pairs, save
    from gossamer.domains.superres import train as fit
    from gossamer.domains.superres.run import authors_optimiser, method
    from gossamer.training.config import TrainConfig

    made = method(recipe, sparsity, half_life)
    torch.manual_seed(seed)
    model = build(network, scale)
    pairs = read_pairs(data, scale, low, limit)
    say(f"{len(pairs)} pictures, {sum(p.numel() for p in model.parameters())} parameters, {steps} steps")
    config = TrainConfig(steps=steps, seed=seed, optim=authors_optimiser(lr))
    model, masks, result = fit(
        model,
        pairs,
        made,
        config,
        patch=patch,
        batch_size=batch,
        folder=output / "run",
        resume=resume,
        overwrite=overwrite,
        progress=True,
    )
    save(output, model.cpu(), network, masks, {"recipe": made.to_yaml()})
    if as_json:
        print_json({"folder": str(output), **result})
    else:
        print_table(("figure", "value"), [("density", result["density"]), ("seconds", result["seconds"])])
        print(f"network: {output}   use: gossamer superres upscale PICTURE --model {output}")
