"""`gossamer coding`: learn dictionaries from pictures, and take noise or holes out of them."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json

coding = typer.Typer(help="Probabilistic sparse coding of pictures.", no_args_is_help=True)

Kind = Annotated[str, typer.Option("--model", "-m", help="bsc, tsc, dsc, mca, mmca or gsc.")]
Components = Annotated[int, typer.Option("--components", "-k", help="Columns of the dictionary.")]
Side = Annotated[int, typer.Option(help="Side of the patches in pixels.")]
Stride = Annotated[int, typer.Option(help="Pixels between patches; 1 is the smoothest and slowest.")]
Patches = Annotated[int, typer.Option(help="Patches to learn from.")]
Steps = Annotated[int, typer.Option(help="EM steps.")]
Candidates = Annotated[int | None, typer.Option(help="Candidates of a point (H').")]
Active = Annotated[int | None, typer.Option(help="Active components of a point at most (gamma).")]
Seed = Annotated[int, typer.Option(help="Of patches and first parameters.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Plot = Annotated[Path | None, typer.Option(help="PNG of what was learned.")]
Dictionary = Annotated[
    Path | None, typer.Option("--dictionary", "-d", help="A model that `coding learn` made; else one is learned.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The restored picture.")]
Before = Annotated[Path | None, typer.Option(help="PNG of the picture before and after.")]


@coding.command()
def learn(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures; colour is made grey.")],
    kind: Kind = "gsc",
    components: Components = 64,
    side: Side = 8,
    patches: Patches = 10_000,
    steps: Steps = 50,
    candidates: Candidates = None,
    active: Active = None,
    restarts: Annotated[int, typer.Option(help="Runs, of which the likeliest is kept.")] = 1,
    whiten: Annotated[bool, typer.Option("--whiten/--no-whiten", help="Flatten the spectrum first.")] = True,
    seed: Seed = 0,
    device: DeviceName = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="The model.")] = Path("dictionary.npz"),
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Learn a dictionary from patches of pictures.

    Example: gossamer coding learn photo.png --components 64 --plot dictionary.png
    """
    import numpy as np

    from gossamer.domains.sparse_coding.files import model, read_picture, save
    from gossamer.domains.sparse_coding.patches import grey, sample_patches, whitened

    options: dict[str, Any] = {"n_candidates": candidates, "max_active": active, "steps": steps, "restarts": restarts}
    coder = model(kind)(components, **options, random_state=seed, device=device)
    shades = [grey(read_picture(path)) for path in pictures]
    found = sample_patches([whitened(shade) if whiten else shade for shade in shades], patches, side, seed)
    found = found - found.mean(1, keepdims=True)
    say(f"{len(found)} patches of {side} x {side}, {components} components, {steps} steps")
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        coder.fit(found)
    for remark in remarks:
        say(f"note: {remark.message}")
    save(coder, output)
    if plot is not None:
        from gossamer.domains.sparse_coding.plots import plot_dictionary

        plot_dictionary(coder, plot)
    facts = {
        "log-likelihood per patch": coder.log_likelihood_,
        "noise": float(np.mean(coder.sigma_)),
        "active components per patch": float(np.sum(np.broadcast_to(coder.prior_, (components,)))),
        "patches at max_active": coder.saturated_,
        "seconds": time.perf_counter() - started,
    }
    _print({"dictionary": str(output), "plot": str(plot) if plot else None}, facts, as_json)


@coding.command()
def denoise(
    picture: Annotated[Path, typer.Argument(help="Picture, grey or colour.")],
    output: Output = Path("denoised.png"),
    dictionary: Dictionary = None,
    components: Components = 64,
    side: Side = 8,
    stride: Stride = 2,
    patches: Patches = 10_000,
    steps: Steps = 30,
    seed: Seed = 0,
    device: DeviceName = "auto",
    before: Before = None,
    as_json: Json = False,
) -> None:
    """Take the noise out of a picture; how strong it is, is learned from the picture.

    Example: gossamer coding denoise noisy.png --output clean.png --before both.png
    """
    from gossamer.domains.sparse_coding.files import read_picture
    from gossamer.domains.sparse_coding.restore import denoise as work

    noisy = read_picture(picture)
    coder = _coder(dictionary, components, steps, seed, device, missing=False)
    started = time.perf_counter()
    found = work(noisy, coder, side=side, stride=stride, patches=patches, seed=seed)
    _finish(output, before, {"before": noisy, "after": found.picture})
    facts = {"noise of grey values 0-255": 255 * found.sigma, "seconds": time.perf_counter() - started}
    _print({"picture": str(output)}, facts, as_json)


@coding.command()
def inpaint(
    picture: Annotated[Path, typer.Argument(help="Picture, grey or colour.")],
    mask: Annotated[Path, typer.Option(help="Picture of equal size, white where pixels are missing.")],
    output: Output = Path("inpainted.png"),
    components: Components = 64,
    side: Side = 8,
    stride: Stride = 2,
    patches: Patches = 4_000,
    steps: Steps = 30,
    seed: Seed = 0,
    device: DeviceName = "auto",
    before: Before = None,
    as_json: Json = False,
) -> None:
    """Fill in missing pixels; the model learns from the patches around and across the holes.

    Example: gossamer coding inpaint scratched.png --mask scratches.png --output whole.png
    """
    import numpy as np

    from gossamer.domains.sparse_coding.files import read_picture
    from gossamer.domains.sparse_coding.patches import grey
    from gossamer.domains.sparse_coding.restore import inpaint as work

    damaged, holes = read_picture(picture), grey(read_picture(mask)) > 0.5
    coder = _coder(None, components, steps, seed, device, missing=True)
    started = time.perf_counter()
    found = work(damaged, holes, coder, side=side, stride=stride, patches=patches, seed=seed)
    hidden = np.where(holes if damaged.ndim == 2 else holes[..., None], np.nan, damaged)
    _finish(output, before, {"before": hidden, "after": found.picture})
    facts = {"missing pixels": f"{100 * holes.mean():.1f} %", "seconds": time.perf_counter() - started}
    _print({"picture": str(output)}, facts, as_json)


@coding.command()
def show(
    dictionary: Annotated[Path, typer.Argument(help="A model that `coding learn` made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path("dictionary.png"),
    as_json: Json = False,
) -> None:
    """Draw a learned dictionary, its likelihood over the steps, and how much each component is used.

    Example: gossamer coding show dictionary.npz -o dictionary.png
    """
    from gossamer.domains.sparse_coding.files import load
    from gossamer.domains.sparse_coding.plots import plot_dictionary

    coder = load(dictionary)
    plot_dictionary(coder, output)
    _print({"picture": str(output)}, {"model": type(coder).__name__, "components": coder.n_components}, as_json)


def _coder(dictionary: Path | None, components: int, steps: int, seed: int, device: str, missing: bool) -> Any:
    from gossamer.domains.sparse_coding.files import load
    from gossamer.domains.sparse_coding.restore import default_coder

    if dictionary is not None:
        return load(dictionary)
    return default_coder(missing, n_components=components, steps=steps, random_state=seed, device=device)


def _finish(output: Path, before: Path | None, pictures: dict[str, Any]) -> None:
    from gossamer.domains.sparse_coding.files import write_picture

    write_picture(output, pictures["after"])
    if before is not None:
        from gossamer.domains.sparse_coding.plots import plot_pictures

        plot_pictures(pictures, before)


def _print(paths: dict[str, str | None], facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(paths | facts)
    else:
        print_table(("figure", "value"), facts.items())
        print("   ".join(f"{name}: {path}" for name, path in paths.items() if path))
