"""`gossamer sae curves`: all kinds of sparse autoencoder of one place in a model, FVU against L0."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import DataDir, Json, Overwrite, use_data
from gossamer.errors import ConfigError, unknown


def curves(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder of a `gossamer train` run, or hf:PATH.")],
    text: Annotated[str, typer.Option("--text", "-t", help="UTF-8 file, tiny-shakespeare or wikitext-2.")],
    module: Annotated[str, typer.Option(help="Module whose output is coded, such as blocks.1.")],
    kinds: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "all",
    k: Annotated[str, typer.Option(help="Comma-separated mean numbers of active features.")] = "8,16,32",
    features: Annotated[int, typer.Option(min=8, help="Size of the dictionaries.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens in a batch.")] = 2048,
    lr: Annotated[float, typer.Option(help="Learning rate of all.")] = 1e-3,
    tokens: Annotated[int | None, typer.Option(min=1, help="Activations to collect at most.")] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens in a block.")] = 128,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the result.")] = Path("out/curves"),
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Train every kind at several budgets on the same activations and draw FVU against L0, measured on other text.

    The activations are those of the first nine tenths of the text, the last tenth measures, one token at a time. Every
    finished arm is kept, so that an interrupted run goes on where it was. Kinds: ReLU, gated, JumpReLU, TopK, mutual,
    Matryoshka, feature, phased.

    Example: gossamer sae curves --model hf:./gpt2 --text corpus.txt --module transformer.h.8 --k 16,32,64 -o out/curves
    """
    from gossamer.autoencoders import ActivationStore, FeatureChoice, collect, load_language_model
    from gossamer.autoencoders.chart import write_curves
    from gossamer.autoencoders.curves import VARIANTS, Budget, sweep
    from gossamer.autoencoders.language import text_path, token_blocks

    use_data(data_dir)
    chosen = list(VARIANTS) if kinds == "all" else [name.strip() for name in kinds.split(",")]
    for name in chosen:
        if name not in VARIANTS:
            raise unknown("kind of curve", name, VARIANTS)
    budgets = _budgets(k)
    for name in chosen:
        for number in budgets:
            VARIANTS[name](number).select.check(features)
    if "feature" in chosen:
        for number in budgets:
            FeatureChoice(number).tokens(batch, features)  # raises where a batch is too small for the budgets
    lm, path = load_language_model(model), text_path(text)
    about = {"model": model, "text": str(path), "module": module, "batch": batch, "context": context, "tokens": tokens}
    budget = Budget(features, steps, lr, seed, window=50 * batch)
    store, kept = output / "activations", output / "curves.json"
    if overwrite:
        kept.unlink(missing_ok=True)
    if overwrite or not kept.exists():
        say(f"collecting the output of {module} on {path}")
        blocks = token_blocks(path, lm.tokenizer, context, part=(0.0, 0.9))
        collect(store, lm.module, blocks, module, limit=tokens, overwrite=True, source=str(path))
    data = ActivationStore(store, batch, seed=seed)
    say(f"{data.samples} activations of width {data.d}; {features} features, {steps} steps of {batch} for each arm")
    rows = sweep(chosen, budgets, data, budget, _measured(lm, path, module, context), kept, about, say)
    facts = {"model": model, "module": module, "features": str(features), "tokens": str(steps * batch)}
    command = shlex.join(["gossamer", *sys.argv[1:]])
    page = write_curves(output / "curves.html", f"Sparse autoencoders of {module}", rows, facts, command)
    if as_json:
        print_json({"page": str(page), "rows": rows})
    else:
        print_table(list(rows[0]), [tuple(row.values()) for row in rows])
        print(f"page: {page}")


def _budgets(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"--k takes numbers with commas between, such as 8,16,32; got {text!r}")
    return found


def _measured(lm: Any, path: Path, module: str, context: int) -> Callable[[Any], dict[str, Any]]:
    """Figures of an autoencoder on the last tenth of the text."""
    from gossamer.cli.sae import figures

    about = {"module": module, "context": context}

    def measured(made: Any) -> dict[str, Any]:
        found = figures(made, lm, path, about)
        return {name: found[name] for name in ("l0", "fvu", "dead", "loss_with_sae", "recovered")}

    return measured
