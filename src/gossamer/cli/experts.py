"""`gossamer experts`: turn Hugging Face models into mixtures of experts, train CLIP-MoE, look at the experts."""

from __future__ import annotations

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
Pattern = Annotated[str, typer.Option(help="Regular expression of the feed-forward networks' names.")]
Pairs = Annotated[Path, typer.Argument(help='Folder with captions.jsonl: {"image": ..., "caption": ...} a line.')]


@experts.command()
def upcycle(
    model: Model,
    output: Output = Path("out/experts"),
    number: Annotated[int, typer.Option("--experts", "-e", min=2, help="Experts of a layer.")] = 4,
    k: K = 2,
    init: Annotated[str, typer.Option(help="copy, noise, drop or slices.")] = "copy",
    pattern: Pattern = r".*\.mlp",
    last: Last = None,
    seed: Annotated[int, typer.Option(help="Of gates and noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Copy every feed-forward network into experts; the model can then be trained further.

    Example: gossamer experts upcycle ./clip-vit-base-patch32 --experts 8 --init drop --last 6 -o out/moe
    """
    from gossamer.experts import TopK, save
    from gossamer.experts import upcycle as convert

    dense = _dense(model)
    made = convert(dense, pattern, n_experts=number, router=TopK(k), init=init, last=last, seed=seed)
    save(made, output)
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
    data.tokenizer.save_pretrained(output)
    _show({"output": str(output), "router loss": losses[-1], **_counts(mixed)}, as_json)


@experts.command()
def evaluate(model: Model, pairs: Pairs, as_json: Json = False) -> None:
    """Retrieval between images and captions, both ways, of a model with experts or a dense CLIP.

    Example: gossamer experts evaluate out/clip-moe ./pairs
    """
    from gossamer.experts import embed, encode_clip, recall
    from gossamer.experts.clip_pairs import ClipFolder

    data = ClipFolder(pairs, model)
    network = _either(model)
    images, texts = embed(network, data, encode_clip)
    first, owner = data.images()
    _show(recall(images[first], texts, owner), as_json)


@experts.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """What the expert layers of a saved model hold.

    Example: gossamer experts inspect out/clip-moe
    """
    import torch

    from gossamer.experts import load, moe_layers
    from gossamer.experts.evaluate import similarity

    network = load(model)
    rows = {}
    for name, layer in moe_layers(network).items():
        weights = torch.cat([p.detach().flatten(1) for p in layer.experts.parameters()], dim=1)
        rows[name] = {"experts": len(weights), "similarity": similarity(weights), "router": str(layer.router)}
    if as_json:
        print_json({**_counts(network), "layers": rows})
        return
    print_table(("layer", "experts", "similarity"), [(n, r["experts"], r["similarity"]) for n, r in rows.items()])
    print_table(("figure", "value"), _counts(network).items())


def _dense(folder: Path) -> Any:
    """A dense Hugging Face model of the class that its configuration names."""
    import json

    from gossamer.errors import CheckpointError, MissingExtra

    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        return getattr(transformers, names[0]).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint that transformers can load: {error!r}") from None


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
