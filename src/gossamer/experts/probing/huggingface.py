"""Hugging Face models to probe, from a local folder: what feeds them, and which metrics say what a cut costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError
from ..clip_pairs import ClipFolder, tokenizer_of
from ..evaluate import recall
from ..hf import encode_clip, load_dense
from ..loose import gather, loose
from ..pixels import Pixels
from .components import PRESETS, Component, fits
from .sensitivity import Metric

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
MASKED = 0.15  # share of tokens that a masked language model has to guess


@dataclass(frozen=True)
class Probe:
    """A model, batches that calibrate it, how it is called, and what is measured on other data."""

    model: nn.Module
    batches: list[Any]
    run: Callable[[nn.Module, Any], Any]
    metrics: dict[str, Metric]


def _opened(folder: Path) -> Any:
    """A model in evaluation mode; feed-forwards that lie loose in its blocks (OPT) are modules of their own."""
    model = load_dense(folder)
    gather(model, [name for name in loose(model) if name.endswith(".fc1")])
    return model


def components_of(model: nn.Module) -> tuple[Component, ...]:
    """The ready components that fit a model, with the heads that its configuration names.

    Raises:
        ConfigError: layers of no known form.
    """
    found = max((tuple(c for c in preset if fits(model, c)) for preset in PRESETS.values()), key=len)
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has layers of none of the forms {', '.join(PRESETS)}; in Python a Component says "
            "which modules make a layer (docs/probing.md)"
        )
    config = getattr(model, "config", None)
    return tuple(replace(c, heads=c.heads or _heads(getattr(config, f"{c.name}_config", config))) for c in found)


def _heads(config: Any) -> int | None:
    names = ("num_attention_heads", "n_head", "num_heads")
    return next((int(getattr(config, name)) for name in names if hasattr(config, name)), None)


def on_text(folder: Path, text: Path, context: int, sequences: int) -> Probe:
    """A language model: the first half of the text calibrates, perplexity is measured on the second.

    A masked one guesses 15 % of the tokens, the same for every cut; a model without a head is compared with itself as
    it was, by the mean cosine of its last states.

    Raises:
        DataError: too short or unreadable text, no tokenizer.
    """
    model: Any = _opened(folder)
    tokenizer = tokenizer_of(folder)
    ids = torch.tensor(tokenizer(_read(text), verbose=False)["input_ids"])
    count = min(sequences, len(ids) // (2 * context))
    if count < 1:
        raise DataError(f"{text} has {len(ids)} tokens; two sequences of {context} need {2 * context}")
    seen, tested = ids[: 2 * count * context].view(2, count, context)
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False) and "Encoder" not in kind:
        raise ConfigError(f"{kind} has a decoder that reads an encoder; probe its encoder or decoder in Python")
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        metrics = {"perplexity": lambda m: perplexity(m, tested)}
    elif kind.endswith("ForMaskedLM"):
        if tokenizer.mask_token_id is None:
            raise DataError(f"the tokenizer in {folder} has no mask token, which {kind} needs")
        metrics = {"perplexity": lambda m: masked_perplexity(m, tested, tokenizer.mask_token_id)}
    else:
        metrics = _likeness(model, tested.split(4))
    return Probe(model, list(seen.split(1)), lambda m, b: m(b), metrics)


def on_pictures(folder: Path, pictures: Path, count: int) -> Probe:
    """A vision transformer: every second picture calibrates, the others test.

    A classifier's metrics are the share of pictures whose class stays what the whole model says, and the accuracy where
    pictures lie in folders that bear the names of its classes; of other models the likeness, as in `on_text`.

    Args:
        pictures: folder, searched with its sub-folders. count: pictures to calibrate on, and as many to test on.
    Raises:
        DataError: less than two pictures.
    """
    model: Any = _opened(folder)
    size = model.config.image_size
    reader = Pixels.of(folder, int(size[0] if isinstance(size, list | tuple) else size), (0.5,) * 3, (0.5,) * 3)
    paths = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in PICTURES)
    if len(paths) < 2:
        raise DataError(f"{pictures} holds {len(paths)} pictures ({', '.join(PICTURES)}); at least two are needed")
    step = max(1, len(paths) // (2 * count))  # over the whole folder, so that every class is met
    chosen = paths[::step][: 2 * count]
    seen, tested = (torch.stack([reader.read(path) for path in part]) for part in (chosen[::2], chosen[1::2]))
    batches = tested.split(16)
    if not type(model).__name__.endswith("ForImageClassification"):
        return Probe(model, list(seen.split(16)), lambda m, b: m(b), _likeness(model, batches))
    whole = _classes(model, batches)
    metrics: dict[str, Metric] = {"same class": lambda m: float((_classes(m, batches) == whole).float().mean())}
    names = {str(name).lower(): int(number) for number, name in model.config.id2label.items()}
    labels = [names.get(path.parent.name.lower(), -1) for path in chosen[1::2]]
    if min(labels) >= 0:
        truth = torch.tensor(labels)
        metrics["accuracy"] = lambda m: float((_classes(m, batches) == truth).float().mean())
    return Probe(model, list(seen.split(16)), lambda m, b: m(b), metrics)


def on_pairs(folder: Path, pairs: Path, count: int) -> Probe:
    """A CLIP model: every second pair calibrates, recall@1 both ways is measured on the others.

    Args:
        pairs: as `ClipFolder` takes them. count: pairs to calibrate on, and as many to test on.
    Raises:
        DataError: less than four pairs; broken ones.
    """
    model: Any = _opened(folder)
    if not hasattr(model, "get_image_features"):
        raise ConfigError(
            f"{type(model).__name__} has no two towers: pairs are for CLIP models, others take text or images"
        )
    data = ClipFolder(pairs, folder)
    if len(data) < 4:
        raise DataError(f"{pairs} holds {len(data)} pairs; at least four are needed")
    index = torch.arange(min(len(data), 2 * count))
    seen, tested = data.batch(index[::2]), data.batch(index[1::2])
    pieces = list(zip(seen[0].split(16), seen[1].split(16), strict=True))

    def both(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return recall(*encode_clip(model, *tested), ks=(1,))

    metrics: dict[str, Metric] = {
        "image to text R@1": lambda m: both(m)["first to second R@1"],
        "text to image R@1": lambda m: both(m)["second to first R@1"],
    }
    return Probe(model, pieces, lambda m, b: encode_clip(m, *b), metrics)


@torch.no_grad()
def perplexity(model: nn.Module, blocks: Tensor) -> float:
    """exp of the mean negative log-likelihood of each next token; blocks (n, context)."""
    total, count = 0.0, 0
    for block in blocks.split(4):
        logits = model(block).logits[:, :-1].flatten(0, 1).float()
        total += float(F.cross_entropy(logits, block[:, 1:].flatten(), reduction="sum"))
        count += block[:, 1:].numel()
    return float(torch.tensor(total / count).exp())


@torch.no_grad()
def masked_perplexity(model: nn.Module, blocks: Tensor, mask_token: int) -> float:
    """exp of the mean negative log-likelihood of hidden tokens, the same for every model; blocks (n, context)."""
    hidden = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(0)) < MASKED
    hidden[:, 0] |= ~hidden.any(1)
    total = 0.0
    for block, gone in zip(blocks.split(4), hidden.split(4), strict=True):
        logits = model(block.masked_fill(gone, mask_token)).logits[gone].float()
        total += float(F.cross_entropy(logits, block[gone], reduction="sum"))
    return float(torch.tensor(total / int(hidden.sum())).exp())


def _likeness(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Metric]:
    """Mean cosine of the last states with those of the whole model."""
    whole = [_states(model, batch) for batch in batches]

    def metric(model: nn.Module) -> float:
        pairs = zip(batches, whole, strict=True)
        return float(torch.cat([F.cosine_similarity(_states(model, b), w, -1).flatten() for b, w in pairs]).mean())

    return {"likeness": metric}


@torch.no_grad()
def _states(model: nn.Module, batch: Tensor) -> Tensor:
    out = model(batch)
    found = getattr(out, "last_hidden_state", None)
    found = getattr(out, "logits", None) if found is None else found
    if not isinstance(found, Tensor):
        raise ConfigError(f"{type(model).__name__} gives {type(out).__name__} without last states or logits")
    return found.float()


@torch.no_grad()
def _classes(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([model(batch).logits.argmax(-1) for batch in batches])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read text {path}: {error}") from None
