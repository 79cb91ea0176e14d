"""Language models whose activations are looked at: loading them, streaming text through them, their loss."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.autoencoders.hooks import activations, replaced
from gossamer.autoencoders.metrics import recovered
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.data.locate import find
from gossamer.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer
from gossamer.errors import CheckpointError, ConfigError, DataError, MissingExtra
from gossamer.models.language import load_llama
from gossamer.models.zoo import build
from gossamer.runs.model_files import load_weights
from gossamer.training.config import Config, load_config

_PIECE = 1 << 20  # bytes of text that are held at once
TEXTS = {"tiny-shakespeare": "input.txt", "wikitext-2": "valid.txt"}


@dataclass
class LanguageModel:
    """A model from token ids (B, length) to logits, and what turns text into ids."""

    module: nn.Module
    tokenizer: Tokenizer
    name: str

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, length, vocabulary)."""
        out = self.module(tokens)
        found: Tensor = out if isinstance(out, Tensor) else out.logits
        return found

    @torch.no_grad()
    def loss(self, tokens: Tensor) -> float:
        """Mean cross entropy of the next token, in nats; the last position has none."""
        logits = self.logits(tokens)[:, :-1]
        return float(F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()))

    @torch.no_grad()
    def continued(self, prompt: str, count: int, temperature: float = 0.8, seed: int = 0, context: int = 128) -> str:
        """The prompt and `count` more tokens; temperature 0 takes the likeliest."""
        tokens = self.tokenizer.encode(prompt)
        if not tokens:
            raise ConfigError("the prompt is empty; give at least one token")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            last = self.logits(torch.tensor([tokens[-context:]]))[0, -1].float()
            if temperature == 0:
                tokens.append(int(last.argmax()))
            else:
                odds = (last / temperature).softmax(0)
                tokens.append(int(torch.multinomial(odds, 1, generator=generator)))
        return self.tokenizer.decode(tokens)


def load_language_model(place: str) -> LanguageModel:
    """A causal language model from a local folder; nothing is downloaded.

    Args:
        place: "hf:PATH" or a folder with `config.json` (Hugging Face), or the folder of a `gossamer train` run.
    Raises:
        CheckpointError: no such folder, or no model in it. MissingExtra: an architecture that needs transformers.
    """
    folder = Path(place.removeprefix("hf:"))
    if (folder / "config.yaml").is_file() and not place.startswith("hf:"):
        return _from_run(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no model: neither config.json (Hugging Face) nor a run's config.yaml")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read {folder / 'config.json'}: {error}") from error
    module = load_llama(folder) if kind == "llama" else _from_transformers(folder)
    return LanguageModel(module.eval().requires_grad_(False), _tokenizer(folder), str(folder))


def _from_transformers(folder: Path) -> nn.Module:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load a causal model from {folder}: {error}") from error
    return model


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    return BpeTokenizer.from_file(path) if path.is_file() else ByteTokenizer()


def _from_run(folder: Path) -> LanguageModel:
    settings = load_config(folder / "config.yaml", kind=Config)
    if settings.task != "language":
        raise CheckpointError(f"{folder} is a run of task {settings.task!r}, not of a language model")
    chosen = settings.data.options.get("tokenizer", "byte")
    tokenizer = ByteTokenizer() if chosen == "byte" else BpeTokenizer.from_file(chosen)
    options: dict[str, Any] = dict(settings.model.options)
    if ":" not in settings.model.name:
        options = {"shape": (settings.data.options.get("context", 128),), "classes": tokenizer.size, **options}
    module = build(settings.model.name, **options)
    load_weights(folder, module)
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, str(folder))


def text_path(place: str | Path) -> Path:
    """A text file by its path, or one of TEXTS by name. Raises DataError where there is none."""
    if str(place) in TEXTS:
        file = TEXTS[str(place)]
        return find(str(place), file) / file
    if not Path(place).is_file():
        raise DataError(f"there is no text {str(place)!r}; give a UTF-8 file or one of {', '.join(TEXTS)}")
    return Path(place)


def token_blocks(
    path: Path, tokenizer: Tokenizer, context: int, batch: int = 16, part: tuple[float, float] = (0.0, 1.0)
) -> Iterator[Tensor]:
    """Blocks of tokens (up to `batch`, context) int64 of a text that is read piece by piece; a rest is not used.

    Args:
        part: of the file, as fractions of its bytes.
    Raises:
        DataError: unreadable, not UTF-8, or not one block of tokens.
    """
    rest: list[int] = []
    made = 0
    for text in _pieces(path, part):
        tokens = rest + tokenizer.encode(text)
        whole = len(tokens) // context
        if whole:
            yield from torch.tensor(tokens[: whole * context]).view(whole, context).split(batch)
        rest, made = tokens[whole * context :], made + whole
    if not made:
        raise DataError(f"text file {path} holds no block of {context} tokens in its part {part[0]:g} to {part[1]:g}")


def _pieces(path: Path, part: tuple[float, float]) -> Iterator[str]:
    """The text of a part of a file, cut at ends of lines where there are any."""
    try:
        size = path.stat().st_size
        position, end = round(part[0] * size), round(part[1] * size)
        with path.open("rb") as file:
            file.seek(position)
            decoder, held = codecs.getincrementaldecoder("utf-8")(), ""
            first = True
            while position < end:
                data = file.read(min(_PIECE, end - position))
                if not data:
                    break
                position += len(data)
                if first and part[0] > 0:  # the cut may lie within a letter
                    data = data.lstrip(bytes(range(0x80, 0xC0)))
                first = False
                held += decoder.decode(data)
                cut = held.rfind("\n") + 1 or len(held)
                yield held[:cut]
                held = held[cut:]
            if held:
                yield held
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read text file {path}: {error}") from error


@torch.no_grad()
def loss_recovered(
    model: LanguageModel, name: str, sae: SparseAutoencoder, blocks: Sequence[Tensor]
) -> dict[str, float]:
    """The model's loss as it is, with reconstructed and with mean activations, and the share recovered.

    Args:
        name: module whose output is replaced. blocks: tokens, (B, length) each.
    Returns:
        {"loss", "loss_with_sae", "loss_ablated", "recovered"}, losses in nats per token.
    Raises:
        DataError: no blocks. ConfigError: a transcoder, whose output is not the module's own.
    """
    if not blocks:
        raise DataError("there is no text to measure the loss on")
    if sae.transcodes:
        raise ConfigError("loss recovered replaces a module's output by its reconstruction; a transcoder has another")
    means = torch.cat([activations(model.module, b, name)[0].flatten(0, -2) for b in blocks]).mean(0)
    plain = sum(model.loss(b) for b in blocks) / len(blocks)
    with replaced(model.module, name, lambda x: sae(x, batch=False)):
        with_sae = sum(model.loss(b) for b in blocks) / len(blocks)
    with replaced(model.module, name, lambda x: means.expand_as(x)):
        ablated = sum(model.loss(b) for b in blocks) / len(blocks)
    share = recovered(plain, with_sae, ablated)
    return {"loss": plain, "loss_with_sae": with_sae, "loss_ablated": ablated, "recovered": share}
