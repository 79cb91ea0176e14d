"""`gossamer sae`: train, look at and use sparse autoencoders of a language model's activations."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import DataDir, Json, Overwrite, use_data
from gossamer.cli.sae_curves import curves
from gossamer.errors import ConfigError

sae = typer.Typer(help="Sparse autoencoders of a language model's activations.", no_args_is_help=True)
sae.command()(curves)

Model = Annotated[str, typer.Option("--model", "-m", help="Folder of a `gossamer train` run, or hf:PATH.")]
Text = Annotated[str, typer.Option("--text", "-t", help="UTF-8 file, tiny-shakespeare or wikitext-2.")]
Sae = Annotated[Path, typer.Option("--sae", help="Folder that `sae train` made, or one of SAELens.")]
Context = Annotated[int, typer.Option(min=2, help="Tokens in a block.")]


@sae.command()
def train(
    model: Model,
    text: Text,
    module: Annotated[str, typer.Option(help="Module whose output is coded, such as blocks.1.")],
    kind: Annotated[str, typer.Option("--kind", help="mutual, feature, topk, relu, gated or jumprelu.")] = "mutual",
    features: Annotated[int, typer.Option(min=1, help="Size of the dictionary.")] = 1024,
    k: Annotated[float, typer.Option(help="Mean active features of a token.")] = 16.0,
    budgets: Annotated[str, typer.Option(help="uniform or zipf, for feature choice.")] = "uniform",
    switch_at: Annotated[float | None, typer.Option(help="Fraction after which feature choice (Zipf) follows.")] = None,
    aux: Annotated[str, typer.Option(help="aux_k, aux_zipf or none: what revives features.")] = "aux_k",
    window: Annotated[int, typer.Option(min=1, help="Tokens of silence after which a feature is dead.")] = 100_000,
    prefixes: Annotated[str, typer.Option(help="Sizes of nested dictionaries: 64,256,1024.")] = "",
    target: Annotated[str | None, typer.Option(help="Module to predict: makes a transcoder.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Activations to collect at most.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens in a batch.")] = 2048,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default 2e-4 / sqrt(features / 2^14).")] = None,
    context: Context = 128,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the result.")] = Path("out/sae"),
    saelens: Annotated[Path | None, typer.Option(help="Write it in SAELens' format here, too.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Collect activations of a model on the first nine tenths of a text, train, and measure on the last tenth.

    Example: gossamer sae train --model out/shakespeare --text tiny-shakespeare --module blocks.1 --k 8 -o out/sae
    """
    from gossamer.autoencoders import ActivationStore, SparseAutoencoder, collect, load_language_model, optimiser
    from gossamer.autoencoders import save as save_sae
    from gossamer.autoencoders import train as fit
    from gossamer.autoencoders.files import save_saelens
    from gossamer.autoencoders.language import text_path, token_blocks
    from gossamer.autoencoders.selection import ALIASES
    from gossamer.training.config import TrainConfig

    use_data(data_dir)
    select = _select(ALIASES.get(kind, kind), k, budgets)
    select.check(features)
    plan = _plan(aux, window, switch_at, k)
    sizes = _numbers(prefixes, "prefixes") or None
    lm, path = load_language_model(model), text_path(text)
    store = output / "activations"
    if overwrite or not (resume and store.exists()):
        say(f"collecting the output of {module} on {path}")
        blocks = token_blocks(path, lm.tokenizer, context, part=(0.0, 0.9))
        options: dict[str, Any] = {"target": target, "limit": tokens, "overwrite": overwrite, "source": str(path)}
        collect(store, lm.module, blocks, module, **options)
    data = ActivationStore(store, batch, seed=seed)
    made = SparseAutoencoder(data.d, features, select, d_out=data.d_out, prefixes=sizes, seed=seed)
    say(f"{data.samples} activations of width {data.d}; {features} features, {kind}, {steps} steps of {batch}")
    config = TrainConfig(steps=steps, seed=seed, optim=optimiser(features, steps, lr), clip=1.0)
    fit(made, data, config, plan, run=output / "run", resume=resume, overwrite=overwrite, progress=True)
    made.cpu()
    about = {"model": model, "module": module, "target": target, "text": str(path), "context": context}
    save_sae(output, made, about)
    if saelens is not None:
        save_saelens(saelens, made, {"model_name": model, "hook_name": module})
    found = figures(made, lm, path, about)
    if as_json:
        print_json({"folder": str(output), **found})
    else:
        print_table(("figure", "value"), found.items())
        print(f"autoencoder: {output}   look at it: gossamer sae browse --sae {output} --output features.html")


def _select(kind: str, k: float, budgets: str) -> Any:
    from gossamer.autoencoders import make

    whole = kind == "topk" and k == int(k)
    return make(kind, k=int(k) if whole else k, **({"budgets": budgets} if kind == "feature" else {}))


def _plan(aux: str, window: int, switch_at: float | None, k: float) -> Any:
    from gossamer.autoencoders import AuxK, AuxZipf, FeatureChoice, Plan, Switch
    from gossamer.errors import unknown

    kinds = {"aux_k": AuxK(window=window), "aux_zipf": AuxZipf(window=window), "none": None}
    if aux not in kinds:
        raise unknown("auxiliary loss", aux, kinds)
    return Plan(kinds[aux], None if switch_at is None else Switch(switch_at, FeatureChoice(k, "zipf")))


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"{name} must be whole numbers with commas between them, got {text!r}") from error


def figures(made: Any, lm: Any, path: Path, about: dict[str, Any], blocks: int = 8) -> dict[str, Any]:
    """Figures on the last tenth of the text; loss recovered where the module's own output is coded."""
    from itertools import islice

    from gossamer.autoencoders import loss_recovered, measure
    from gossamer.autoencoders.hooks import activations
    from gossamer.autoencoders.language import token_blocks

    held = list(islice(token_blocks(path, lm.tokenizer, about["context"], part=(0.9, 1.0)), blocks))
    names = [about["module"], *([about["target"]] if about.get("target") else [])]
    found = measure(made, [tuple(activations(lm.module, b, *names)) for b in held]).as_dict()
    return found if made.transcodes else found | loss_recovered(lm, about["module"], made, held)


def _opened(folder: Path, model: str | None, module: str | None) -> tuple[Any, Any, dict[str, Any]]:
    """The autoencoder, its model and what is known of it, options first."""
    from gossamer.autoencoders import load, load_language_model

    made, about = load(folder)
    named = str(about.get("model_name"))  # in SAELens' format
    if "model" not in about and Path(named.removeprefix("hf:")).is_dir():
        about |= {"model": about["model_name"], "module": about.get("hook_name")}
    about = {"context": 128, "text": None, **about}
    about |= {key: value for key, value in (("model", model), ("module", module)) if value is not None}
    for key in ("model", "module"):
        if not about.get(key):
            raise ConfigError(f"{folder} does not say which {key} it is for; give --{key}")
    return made, load_language_model(about["model"]), about


@sae.command()
def browse(
    sae: Sae,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page (.html).")] = Path("features.html"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="In place of the one that it was trained on.")
    ] = None,
    module: Annotated[str | None, typer.Option(help="In place of the one that it was trained on.")] = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="In place of the end of the training text.")] = None,
    features: Annotated[str, typer.Option(help="How many, or numbers with commas between them.")] = "60",
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of text to look at.")] = 256,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a page of features: what activates them most, how often, what they promote.

    Example: gossamer sae browse --sae out/sae --features 100 --output features.html
    """
    from gossamer.autoencoders import survey
    from gossamer.autoencoders.language import text_path, token_blocks
    from gossamer.autoencoders.page import write_page

    use_data(data_dir)
    made, lm, about = _opened(sae, model, module)
    if text is None and not about["text"]:
        raise ConfigError(f"{sae} does not say which text it was trained on; give --text")
    path = text_path(text or about["text"])
    chosen = _numbers(features, "features") or [60]
    part = (0.9, 1.0) if text is None else (0.0, 1.0)
    stream = token_blocks(path, lm.tokenizer, about["context"], part=part)
    found = survey(
        lm, about["module"], made, _first(stream, blocks), features=chosen[0] if "," not in features else chosen
    )
    values = figures(made, lm, path, about)
    facts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    facts = {"kind": made.select.name, "model": about["model"], "module": about["module"], **facts}
    command = shlex.join(["gossamer", *sys.argv[1:]])
    write_page(output, f"Features of {about['module']}", found, facts, command)
    if as_json:
        print_json({"page": str(output), "features": [feature.index for feature in found.features], **values})
    else:
        print_table(("figure", "value"), facts.items())
        print(f"page: {output}")


def _first(stream: Any, blocks: int) -> Any:
    for batch in stream:
        yield batch[:blocks]
        blocks -= len(batch)
        if blocks <= 0:
            return


@sae.command()
def steer(
    sae: Sae,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    add: Annotated[
        list[str] | None, typer.Option(help="FEATURE=AMOUNT, added to every token; may be repeated.")
    ] = None,
    set_to: Annotated[list[str] | None, typer.Option("--set", help="FEATURE=VALUE, held at every token.")] = None,
    ablate: Annotated[list[int] | None, typer.Option(help="Feature to remove; may be repeated.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="In place of the one that it was trained on.")
    ] = None,
    module: Annotated[str | None, typer.Option(help="In place of the one that it was trained on.")] = None,
    count: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to add.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Continue a text with the model as it is, and with features changed.

    Example: gossamer sae steer --sae out/sae --prompt "ROMEO:" --add 17=8
    """
    from gossamer.autoencoders import steered

    made, lm, about = _opened(sae, model, module)
    options = {"add": _pairs(add), "set_to": _pairs(set_to), "ablate": ablate or ()}
    settings: dict[str, Any] = {"temperature": temperature, "seed": seed, "context": about["context"]}
    plain = lm.continued(prompt, count, **settings)
    with steered(lm.module, about["module"], made, **options):
        changed = lm.continued(prompt, count, **settings)
    if as_json:
        print_json({"plain": plain, "steered": changed})
    else:
        print(f"--- as it is\n{plain}\n--- steered\n{changed}")


def _pairs(values: list[str] | None) -> dict[int, float]:
    try:
        return {int(feature): float(amount) for feature, amount in (value.split("=") for value in values or ())}
    except ValueError as error:
        raise ConfigError(f"features are changed by FEATURE=NUMBER, such as 17=8; got {values}") from error
