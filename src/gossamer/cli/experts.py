"""`gossamer experts`: turn Hugging Face models into mixtures of experts, train CLIP-MoE, look at the experts."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json

experts = typer.Typer(help="Mixtures of experts out of dense models.", no_args_is_help=True)

Model = Annotated[Path, typer.Argument(help="Folder of a checkpoint with config.json and safetensors.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model.")]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Experts of a token.")]
Last = Annotated[int | None, typer.Option(min=1, help="Only the last so many networks of each tower.")]
Pattern = Annotated[
    str | None, typer.Option(help="Regular expression of the feed-forward networks' names; all that are known.")
]
Pairs = Annotated[Path, typer.Argument(help='Folder with captions.jsonl: {"image": ..., "caption": ...} a line.')]


@experts.command()
def upcycle(
    model: Model,
    output: Output = Path("out/experts"),
    number: Annotated[int, typer.Option("--experts", "-e", min=2, help="Experts of a layer.")] = 4,
    k: K = 2,
    init: Annotated[str, typer.Option(help="copy, noise, drop or slices.")] = "copy",
    pattern: Pattern = None,
    last: Last = None,
    seed: Annotated[int, typer.Option(help="Of gates and noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Copy every feed-forward network into experts; the model can then be trained further.

    Example: gossamer experts upcycle ./clip-vit-base-patch32 --experts 8 --init drop --last 6 -o out/moe
    """
    from gossamer.experts import TopK, save
    from gossamer.experts import upcycle as convert
    from gossamer.experts.hf import load_dense

    dense = load_dense(model)
    made = convert(dense, pattern, n_experts=number, router=TopK(k), init=init, last=last, seed=seed)
    save(made, output)
    _copy_beside(model, output)
    _show({"output": str(output), **_counts(made)}, as_json)


@experts.command()
def clip(
    model: Model,
    pairs: Pairs,
    output: Output = Path("out/clip-moe"),
    stages: Annotated[int, typer.Option(min=1, help="Stages of contrastive learning; experts are one more.")] = 3,
    clusters: Annotated[int, typer.Option(min=1, help="Of images and of texts, in each stage.")] = 3,
    k: K = 2,
    batch: Annotated[int, typer.Option(min=2, help="Pairs of a step.")] = 800,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each phase; default: one epoch.")] = None,
    lr: Annotated[float, typer.Option(help="Of the stages.")] = 1e-5,
    router_lr: Annotated[float, typer.Option(help="Of the routers.")] = 1e-6,
    last: Last = None,
    seed: Annotated[int, typer.Option(help="Of clusters, batches and gates.")] = 0,
    as_json: Json = False,
) -> None:
    """Diversified multiplet upcycling of a CLIP model. Finished stages are kept in the output folder and not repeated.

    Example: gossamer experts clip ./clip-vit-large-patch14 ./pairs --stages 3 -o out/clip-moe
    """
    from gossamer.experts import TopK, Training, dense_clip, encode_clip, find_ffn, save, train_routers, upcycle_from
    from gossamer.experts import stages as train_stages
    from gossamer.experts.clip_pairs import ClipFolder

    base = dense_clip(model)
    data = ClipFolder(pairs, model)
    names = find_ffn(base, r".*\.mlp", last)
    how = Training(steps, batch, lr, seed=seed)
    kept = output / "stages"
    made = train_stages(base, data, encode_clip, names, how, count=stages, clusters=clusters, folder=kept, say=say)
    mixed = upcycle_from(made, names, router=TopK(k), dropout=0.1, seed=seed)
    losses = train_routers(mixed, data, encode_clip, Training(steps, batch, router_lr, 1e-2, seed=seed))
    save(mixed.eval(), output)
    _copy_beside(model, output)
    _show({"output": str(output), "router loss": losses[-1], **_counts(mixed)}, as_json)


@experts.command()
def evaluate(
    model: Model,
    pairs: Annotated[Path | None, typer.Argument(help="Folder with captions.jsonl, for retrieval.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Folder of folders of pictures, named after their classes: zero-shot accuracy.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Sentence with {} for a class; may be repeated. A photo of a {}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Retrieval between images and captions, both ways, and zero-shot classification, of a CLIP dense or with experts.

    Examples: gossamer experts evaluate out/clip-moe ./pairs;
    gossamer experts evaluate out/clip-moe --classes ./pictures --template "a photo of a {}, a type of pet."
    """
    from gossamer.errors import ConfigError
    from gossamer.experts import embed, encode_clip, recall
    from gossamer.experts.clip_classes import TEMPLATES, classify
    from gossamer.experts.clip_pairs import ClipFolder

    if pairs is None and classes is None:
        raise ConfigError("give a folder of pairs, --classes, or both: what the model is evaluated on")
    network = _either(model)
    found: dict[str, float] = {}
    if pairs is not None:
        data = ClipFolder(pairs, model)
        images, texts = embed(network, data, encode_clip)
        first, owner = data.images()
        found |= recall(images[first], texts, owner)
    if classes is not None:
        found |= classify(network, model, classes, template or TEMPLATES)
    _show(found, as_json)


@experts.command()
def inspect(
    model: Model,
    pairs: Annotated[Path | None, typer.Option(help="Run a CLIP on these pairs: folder with captions.jsonl.")] = None,
    text: Annotated[Path | None, typer.Option("--text", "-t", help="Run a language model on this text.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pairs, or sequences of 128 tokens, to run on.")] = 64,
    report: Annotated[Path | None, typer.Option(help="Page (.html) of the layers.")] = None,
    as_json: Json = False,
) -> None:
    """What the expert layers of a saved model hold and, on some data, how they share the work.

    Also of models that transformers itself has as mixtures, of the form of Mixtral, Qwen3-MoE and OLMoE.

    Example: gossamer experts inspect out/clip-moe --pairs ./pairs --report experts.html
    """
    from gossamer.experts import adopt, load, moe_layers, moe_report
    from gossamer.experts.evaluate import weight_similarity
    from gossamer.experts.hf import has_experts, load_dense

    network = load(model) if has_experts(model) else adopt(load_dense(model))
    if pairs is not None or text is not None:
        layers = moe_report(network, _forward(model, pairs, text, samples))["layers"]
    else:
        layers = {name: {"similarity": weight_similarity(layer)} for name, layer in moe_layers(network).items()}
    for name, layer in moe_layers(network).items():
        layers[name] |= {"experts": len(layer.experts.up), "router": str(layer.router)}
    if report is not None:
        from gossamer.experts.page import write_page

        facts = {name: f"{count:,}" for name, count in _counts(network).items()}
        facts["router"] = next(iter(layers.values()))["router"]
        command = shlex.join(["gossamer", *sys.argv[1:]])
        write_page(report, f"Experts of {model.resolve().name}", {"layers": layers}, facts, command)
    if as_json:
        print_json({**_counts(network), "report": str(report) if report else None, "layers": layers})
        return
    keys = [key for key in ("experts", "similarity", "entropy", "dropped") if key in next(iter(layers.values()))]
    print_table(("layer", *keys), [(name, *(row[key] for key in keys)) for name, row in layers.items()])
    print_table(("figure", "value"), _counts(network).items())


def _forward(folder: Path, pairs: Path | None, text: Path | None, samples: int) -> Any:
    """Runs a model on data in batches of 16."""
    import torch

    from gossamer.errors import ConfigError, DataError
    from gossamer.experts import encode_clip
    from gossamer.experts.clip_pairs import ClipFolder, tokenizer_of

    if pairs is not None and text is not None:
        raise ConfigError("give --pairs or --text, not both")
    if pairs is not None:
        data = ClipFolder(pairs, folder)
        parts = [data.batch(index) for index in torch.arange(min(samples, len(data))).split(16)]
        return lambda m: [encode_clip(m, *part) for part in parts]
    try:
        words = Path(text).read_text(encoding="utf-8")  # type: ignore[arg-type]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read text {text}: {error}") from None
    ids = torch.tensor(tokenizer_of(folder)(words, verbose=False)["input_ids"])[: 128 * samples]
    if not len(ids):
        raise DataError(f"{text} holds no token")
    blocks = ids[: len(ids) // 128 * 128].view(-1, 128) if len(ids) >= 128 else ids.unsqueeze(0)
    return lambda m: [m(block) for block in blocks.split(16)]


_BESIDE = (".json", ".txt", ".model", ".jinja")  # tokenizer, preprocessor


def _copy_beside(model: Path, output: Path) -> None:
    """What lies beside the weights in a checkpoint folder, such as its tokenizer, so that the new one is complete."""
    for path in sorted(model.iterdir()):
        wanted = path.is_file() and path.suffix in _BESIDE and ".index." not in path.name
        if wanted and not (output / path.name).exists():
            shutil.copyfile(path, output / path.name)


def _either(folder: Path) -> Any:
    from gossamer.experts import dense_clip, load
    from gossamer.experts.hf import has_experts

    return load(folder) if has_experts(folder) else dense_clip(folder)


def _counts(model: Any) -> dict[str, int]:
    from gossamer.experts import active_parameters

    active, total = active_parameters(model)
    return {"parameters": total, "active parameters": active}


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(figures)
    else:
        print_table(("figure", "value"), figures.items())
