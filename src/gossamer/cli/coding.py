"""`gossamer coding`: learn dictionaries from pictures, and take noise or holes out of them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, remarks, say
from gossamer.cli.options import Json
from gossamer.errors import ConfigError, DataError

coding = typer.Typer(help="Probabilistic sparse coding of pictures.", no_args_is_help=True)

Kind = Annotated[str, typer.Option("--model", "-m", help="bsc, tsc, dsc, mca, mmca or gsc.")]
Components = Annotated[int, typer.Option("--components", "-k", min=1, help="Columns of the dictionary.")]
Side = Annotated[int, typer.Option(min=2, help="Side of the patches in pixels.")]
Stride = Annotated[int, typer.Option(min=1, help="Pixels between patches; 1 is the smoothest and slowest.")]
Patches = Annotated[int, typer.Option(min=2, help="Patches to learn from.")]
Steps = Annotated[int, typer.Option(min=1, help="EM steps.")]
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Candidates of a patch (H'); else 8, or fewer where the model is slow.")
]
Active = Annotated[
    int | None, typer.Option(min=1, help="Active components of a patch at most (gamma), up to the candidates.")
]
Seed = Annotated[int, typer.Option(help="Of patches and first parameters.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Plot = Annotated[Path | None, typer.Option(help="PNG of what was learned.")]
Dictionary = Annotated[
    Path | None,
    typer.Option(
        "--dictionary",
        "-d",
        help="A model of `coding learn --no-whiten`: its components and side are kept. Else one is learned.",
    ),
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
    restarts: Annotated[int, typer.Option(min=1, help="Runs, of which the likeliest is kept.")] = 1,
    whiten: Annotated[
        bool, typer.Option("--whiten/--no-whiten", help="Flatten the spectrum first; not for a model that denoises.")
    ] = True,
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
    for path, shade in zip(pictures, shades, strict=True):
        if shade.min() == shade.max():
            raise DataError(f"{path} is flat: all its pixels are equal, so it has nothing to learn from; leave it out")
    scaled = [whitened(shade) if whiten else shade / shade.std() for shade in shades]
    found = sample_patches(scaled, patches, side, seed)
    found = found - found.mean(1, keepdims=True)  # a patch's mean says how light it is, not what it shows
    say(f"{len(found)} patches of {side} x {side}, {components} components, {steps} steps")
    started = time.perf_counter()
    with remarks():
        coder.fit(found)
    save(coder, output, {"whitened": whiten})
    if plot is not None:
        from gossamer.domains.sparse_coding.plots import plot_dictionary

        plot_dictionary(coder, plot)
    facts = {
        "patches": len(found),
        "log_likelihood": coder.log_likelihood_,
        "noise": float(np.mean(coder.sigma_)),
        "active": float(np.sum(np.broadcast_to(coder.prior_, (components,)))),
        "saturated": coder.saturated_,
        "seconds": time.perf_counter() - started,
    }
    _print({"dictionary": output, "plot": plot}, facts, as_json)


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
    coder = _coder(dictionary, components, steps, seed, device)
    if dictionary is not None:
        side = _side(dictionary, len(coder.init["W"]), channels=noisy.shape[2] if noisy.ndim == 3 else 1)
    started = time.perf_counter()
    found = work(noisy, coder, side=side, stride=stride, patches=patches, seed=seed)
    _finish(output, before, {"before": noisy, "after": found.picture})
    facts = {"side": side, "noise_grey_levels": 255 * found.sigma, "seconds": time.perf_counter() - started}
    _print({"picture": output, "before": before}, facts, as_json)


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
    from gossamer.domains.sparse_coding.restore import default_coder
    from gossamer.domains.sparse_coding.restore import inpaint as work

    damaged, holes = read_picture(picture), grey(read_picture(mask)) > 0.5
    if holes.shape != damaged.shape[:2]:
        raise ConfigError(
            f"{mask} has {_size(holes.shape)} pixels, {picture} {_size(damaged.shape)}: they must be of equal size"
        )
    coder = default_coder(True, n_components=components, steps=steps, random_state=seed, device=device)
    started = time.perf_counter()
    found = work(damaged, holes, coder, side=side, stride=stride, patches=patches, seed=seed)
    hidden = np.where(holes if damaged.ndim == 2 else holes[..., None], np.nan, damaged)
    _finish(output, before, {"before": hidden, "after": found.picture})
    facts = {"missing": float(holes.mean()), "seconds": time.perf_counter() - started}
    _print({"picture": output, "before": before}, facts, as_json)


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
    facts = {
        "model": type(coder).__name__,
        "components": coder.n_components,
        "features": coder.n_features_in_,
        "steps": coder.n_iter_,
        "log_likelihood": coder.log_likelihood_,
    }
    _print({"picture": output}, facts, as_json)


def _coder(dictionary: Path | None, components: int, steps: int, seed: int, device: str) -> Any:
    """An unfitted model; with a dictionary, one that keeps its components and learns strengths and noise anew."""
    from gossamer.domains.sparse_coding.files import load
    from gossamer.domains.sparse_coding.restore import default_coder

    options: dict[str, Any] = {"steps": steps, "random_state": seed, "device": device}
    if dictionary is None:
        return default_coder(n_components=components, **options)
    known = load(dictionary)
    if known.about_.get("whitened"):
        raise ConfigError(f"{dictionary} is of whitened pictures; to denoise, make it with `coding learn --no-whiten`")
    still = {"anneal": {"T": ((0, 1.0), (1.0, 1.0))}, "init": known.params_, "learn": ("prior", "sigma")}
    return type(known)(**(known.get_params(deep=False) | options | still))


def _side(path: Path, features: int, channels: int) -> int:
    """Side of the patches that a dictionary was made of. Raises ConfigError where they have other channels."""
    side = math.isqrt(features // channels)
    if side * side * channels != features:
        raise ConfigError(
            f"{path} is for patches of {features} values, which are no squares of {channels} channels; "
            "`coding learn` makes its pictures grey, so give it a grey picture, or leave out --dictionary"
        )
    return side


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _finish(output: Path, before: Path | None, pictures: dict[str, Any]) -> None:
    from gossamer.domains.sparse_coding.files import write_picture

    write_picture(output, pictures["after"])
    if before is not None:
        from gossamer.domains.sparse_coding.plots import plot_pictures

        plot_pictures(pictures, before)


_HEADINGS = {
    "log_likelihood": "log-likelihood per patch, nats",
    "noise": "noise, its standard deviation",
    "noise_grey_levels": "noise, its standard deviation in grey levels 0-255",
    "active": "active components per patch",
    "saturated": "share of patches with as many active as allowed",
    "side": "side of the patches, pixels",
    "missing": "share of pixels missing",
}


def _print(paths: dict[str, Path | None], facts: dict[str, Any], as_json: bool) -> None:
    written = {name: str(path) if path else None for name, path in paths.items()}
    if as_json:
        print_json(written | facts)
    else:
        print_table(("figure", "value"), [(_HEADINGS.get(name, name), value) for name, value in facts.items()])
        print("   ".join(f"{name}: {path}" for name, path in written.items() if path))
