"""`gossamer probe`: which layers, neurons and heads of a language model a text needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json

if TYPE_CHECKING:
    from torch import Tensor, nn


def probe(
    model: Annotated[Path, typer.Argument(help="Folder of a Hugging Face causal language model.")],
    text: Annotated[Path, typer.Option("--text", "-t", help="Text file: the first half calibrates, the rest tests.")],
    cuts: Annotated[str, typer.Option(help="Comma-separated: depth, depth: attention, depth: mlp, width, heads.")] = (
        "depth,width"
    ),
    keep: Annotated[str, typer.Option(help="Comma-separated fractions that stay.")] = "0.75,0.5",
    context: Annotated[int, typer.Option(min=8, help="Tokens in a sequence.")] = 256,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences to calibrate on, and as many to test on.")] = 16,
    report: Annotated[Path | None, typer.Option(help="Page (.html) with a chart.")] = None,
    as_json: Json = False,
) -> None:
    """Cut a model in many ways, without training, and measure what each cut costs. The model's files stay as they are.

    Its layers must be named as Llama's, Mistral's and Qwen's are; for others see docs/probing.md.

    Example: gossamer probe ./my-llama --text corpus.txt --cuts depth,width --report probe.html
    """
    from gossamer.errors import ConfigError
    from gossamer.experts.probing import PRESETS, calibrate, sensitivity

    try:
        ratios = [float(part) for part in keep.split(",")]
    except ValueError:
        raise ConfigError(f"--keep takes numbers in (0, 1] with commas between, got {keep!r}") from None
    network, seen, tested = _load(model, text, context, sequences)
    components = PRESETS["llama"]
    found = {c.name: calibrate(network, c, seen.split(1)) for c in components}
    table = sensitivity(
        network,
        components,
        found,
        {"perplexity": lambda m: _perplexity(m, tested)},
        cuts=[part.strip() for part in cuts.split(",")],
        keep=ratios,
        say=say,
    )
    if report is not None:
        table.write_page(report, f"Sensitivity of {model.name}")
    if as_json:
        print_json({"whole": table.whole, "rows": table.rows, "report": str(report) if report else None})
    else:
        names = ("component", "cut", "keep", "removed", "perplexity")
        print_table(
            names, [("whole", "", 1.0, 0, table.whole["perplexity"])] + [tuple(r[n] for n in names) for r in table.rows]
        )


def _load(folder: Path, text: Path, context: int, sequences: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The model and two (n, context) blocks of tokens. Nothing is fetched."""
    import torch

    from gossamer.errors import DataError, MissingExtra

    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; download the model first and give its folder")
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    count = min(sequences, len(ids) // (2 * context))
    if count < 1:
        raise DataError(f"{text} has {len(ids)} tokens; two sequences of {context} need {2 * context}")
    blocks = ids[: 2 * count * context].view(2, count, context)
    return network.eval(), blocks[0], blocks[1]


def _perplexity(model: nn.Module, blocks: Tensor) -> float:
    """exp of the mean negative log-likelihood of each next token."""
    import torch
    from torch.nn import functional as F

    total, count = 0.0, 0
    with torch.no_grad():
        for block in blocks.split(4):
            logits = model(block).logits[:, :-1].flatten(0, 1).float()
            total += float(F.cross_entropy(logits, block[:, 1:].flatten(), reduction="sum"))
            count += block[:, 1:].numel()
    return float(torch.tensor(total / count).exp())
