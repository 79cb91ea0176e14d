"""`gossamer probe`: which layers, neurons and heads of a transformer a task needs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json


def probe(
    model: Annotated[Path, typer.Argument(help="Folder of a Hugging Face model.")],
    text: Annotated[Path | None, typer.Option("--text", "-t", help="Text file, for language models.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, for vision transformers.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Folder with captions.jsonl, for CLIP models.")] = None,
    cuts: Annotated[str, typer.Option(help="Comma-separated: depth, depth: attention, depth: mlp, width, heads.")] = (
        "depth,width"
    ),
    keep: Annotated[str, typer.Option(help="Comma-separated fractions that stay.")] = "0.75,0.5",
    context: Annotated[int, typer.Option(min=8, help="Tokens in a sequence of text.")] = 256,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", "--sequences", min=1, help="Sequences, pictures or pairs to calibrate on; as many test."
        ),
    ] = 16,
    report: Annotated[Path | None, typer.Option(help="Page (.html) with a chart.")] = None,
    as_json: Json = False,
) -> None:
    """Cut a model in many ways, without training, and measure what each cut costs. The model's files stay as they are.

    Language models of the layer names of Llama (Mistral, Qwen), GPT-2 and BERT, vision transformers, both towers of
    CLIP; for others see docs/probing.md. Half of the data calibrates, the other half tests: perplexity (of hidden
    tokens for BERT), accuracy and unchanged classes of pictures, recall of pairs.

    Examples: gossamer probe ./my-llama --text corpus.txt --cuts depth,width --report probe.html;
    gossamer probe ./clip-vit-base-patch32 --pairs ./pairs --cuts "depth,width,heads" --samples 200
    """
    from gossamer.errors import ConfigError
    from gossamer.experts.probing import calibrate, sensitivity
    from gossamer.experts.probing.huggingface import components_of, on_pairs, on_pictures, on_text

    try:
        ratios = [float(part) for part in keep.split(",")]
    except ValueError:
        raise ConfigError(f"--keep takes numbers in (0, 1] with commas between, got {keep!r}") from None
    if sum(source is not None for source in (text, images, pairs)) != 1:
        raise ConfigError("give one of --text, --images and --pairs: what the model is probed with")
    if text is not None:
        asked = on_text(model, text, context, samples)
    elif images is not None:
        asked = on_pictures(model, images, samples)
    else:
        asked = on_pairs(model, pairs, samples)  # type: ignore[arg-type]
    components = components_of(asked.model)
    found = {c.name: calibrate(asked.model, c, asked.batches, asked.run) for c in components}
    wanted = [part.strip() for part in cuts.split(",")]
    table = sensitivity(asked.model, components, found, asked.metrics, cuts=wanted, keep=ratios, say=say)
    if report is not None:
        source = text or images or pairs
        lead = f"{type(asked.model).__name__}, cut without training; one part of {source} calibrates, another measures"
        table.write_page(
            report, f"Sensitivity of {model.resolve().name}", lead, shlex.join(["gossamer", *sys.argv[1:]])
        )
    if as_json:
        print_json({"whole": table.whole, "rows": table.rows, "report": str(report) if report else None})
    else:
        names = ("component", "cut", "keep", "removed", *table.whole)
        rows: list[tuple[Any, ...]] = [("whole", "", 1.0, 0, *table.whole.values())]
        print_table(names, rows + [tuple(row[name] for name in names) for row in table.rows])
