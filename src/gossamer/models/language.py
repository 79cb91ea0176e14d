"""A small decoder-only language model of the Llama type, and Hugging Face weights in and out."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer.errors import CheckpointError, ConfigError
from gossamer.models.blocks import Attention, RMSNorm, SwiGLU, rotary_table
from gossamer.models.weights import load_weights, read_weights


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a `Llama`.

    Attributes:
        vocabulary: number of token ids.
        width: of the tokens.
        hidden: width of the feed-forwards.
        depth: number of blocks.
        heads: query heads.
        kv_heads: key and value heads; must divide `heads`.
        head_width: width of one head.
        context: longest sequence that the model is meant for.
        rope_base: of the rotary positions.
        rope_scaling: None, or Llama 3's (factor, low_freq_factor, high_freq_factor, original context).
        eps: of the norms.
        tied: the output layer is the transposed embedding.
    """

    vocabulary: int = 256
    width: int = 64
    hidden: int = 172
    depth: int = 4
    heads: int = 4
    kv_heads: int = 4
    head_width: int = 16
    context: int = 128
    rope_base: float = 10000.0
    rope_scaling: tuple[float, float, float, int] | None = None
    eps: float = 1e-5
    tied: bool = False


class Block(nn.Module):
    """Pre-norm block: causal attention and SwiGLU, each added to its input."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.eps)
        self.attention = Attention(
            config.width, config.heads, config.kv_heads, config.head_width, bias=False, causal=True
        )
        self.norm2 = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.norm1(x), rotary)
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """Token ids (B, length) int64 -> logits (B, length, vocabulary).

    Weights start from N(0, 0.02^2). Source: Touvron et al. 2023.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.tie()

    def tie(self) -> None:
        """Makes the output layer share the embedding's weight where the configuration says so."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        cosine, sine = self._rotary(tokens.shape[1])
        rotary = cosine.to(hidden), sine.to(hidden)
        for block in self.blocks:
            hidden = block(hidden, rotary)
        return self.head(self.norm(hidden))

    def _rotary(self, length: int) -> tuple[Tensor, Tensor]:
        config = self.config
        return rotary_table(length, config.head_width, config.rope_base, config.rope_scaling)


def llama(
    *,
    shape: Sequence[int] = (128,),
    classes: int = 256,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    hidden: int | None = None,
    tied: bool = False,
) -> Llama:
    """A small Llama for `classes` token ids and sequences of shape[0].

    Args:
        shape: (context,).
        classes: size of the vocabulary.
        width, depth, heads, kv_heads, tied: as in `LlamaConfig`; kv_heads defaults to heads.
        hidden: width of the feed-forwards; default 8/3 of the width, rounded up to a multiple of 4.
    Raises:
        ConfigError: heads that do not divide the width, or kv_heads that do not divide heads.
    """
    if width % heads:
        raise ConfigError(f"{heads} heads do not divide width {width}")
    config = LlamaConfig(
        vocabulary=classes,
        width=width,
        hidden=hidden or 4 * math.ceil(width * 2 / 3),
        depth=depth,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_width=width // heads,
        context=shape[0],
        tied=tied,
    )
    return Llama(config)


# Our names of the parameters and Hugging Face's, {} for the block's number.
_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "blocks.{}.norm1.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.norm2.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.attention.q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attention.k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attention.v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attention.out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` through the table; unknown names stay as they are, so that the loader names them."""
    number = _NUMBER.search(name)
    pattern = _NUMBER.sub("{}", name, count=1)
    return table[pattern].format(number and number.group()) if pattern in table else name


def read_config(content: Mapping[str, Any]) -> LlamaConfig:
    """The configuration in a Hugging Face `config.json` of a Llama.

    Raises:
        CheckpointError: another architecture, biases, another activation or rotary scaling, or a missing size.
    """
    kind, activation = content.get("model_type"), content.get("hidden_act", "silu")
    if kind != "llama" or activation != "silu" or content.get("attention_bias") or content.get("mlp_bias"):
        raise CheckpointError(
            f"config.json describes model_type={kind!r} with activation {activation!r}, attention_bias="
            f"{content.get('attention_bias')}, mlp_bias={content.get('mlp_bias')}; need 'llama', 'silu', no biases"
        )
    try:
        width, heads = int(content["hidden_size"]), int(content["num_attention_heads"])
        base, scaling = _read_rope(content)
        return LlamaConfig(
            vocabulary=int(content["vocab_size"]),
            width=width,
            hidden=int(content["intermediate_size"]),
            depth=int(content["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(content.get("num_key_value_heads") or heads),
            head_width=int(content.get("head_dim") or width // heads),
            context=int(content.get("max_position_embeddings", 2048)),
            rope_base=base,
            rope_scaling=scaling,
            eps=float(content.get("rms_norm_eps", 1e-6)),
            tied=bool(content.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json of a Llama lacks or garbles {error}") from error


def _read_rope(content: Mapping[str, Any]) -> tuple[float, tuple[float, float, float, int] | None]:
    """(base, scaling): newer files keep both in `rope_parameters`, older ones in two entries."""
    rope = {**(content.get("rope_scaling") or {}), **(content.get("rope_parameters") or {})}
    base = float(rope.get("rope_theta") or content.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise CheckpointError(f"rotary scaling {kind!r} is not supported; known: default, llama3")
    sizes = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    return base, (*sizes, int(rope["original_max_position_embeddings"]))


def load_llama(folder: str | Path) -> Llama:
    """A Llama from a Hugging Face folder: `config.json` and `model.safetensors` or its shards.

    Grouped keys and values, tied embeddings and Llama 3's rotary scaling are read; tensors keep their type.

    Raises:
        CheckpointError: a missing or damaged file, another architecture, or tensors that do not fit.
    """
    folder = Path(folder)
    config = read_config(_json(folder / "config.json"))
    named = {
        _renamed(name, {theirs: ours for ours, theirs in _NAMES.items()}): tensor
        for path in _weight_files(folder)
        for name, tensor in read_weights(path).items()
        if not name.endswith("rotary_emb.inv_freq")  # old files carry this constant
    }
    if config.tied and "embed.weight" in named:
        named["head.weight"] = named["embed.weight"]
    with torch.device("meta"):
        model = Llama(config)
    load_weights(model, named)
    model.tie()
    return model.eval()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    shards = _json(index).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names no shards, or shards outside its folder")
    return [folder / name for name in names]


def save_llama(model: Llama, folder: str | Path) -> None:
    """Writes `config.json` and `model.safetensors` as Hugging Face's `LlamaForCausalLM` reads them."""
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        _renamed(name, _NAMES): tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (config.tied and name == "head.weight")
    }
    rope: dict[str, Any] = {"rope_theta": config.rope_base, "rope_type": "default"}
    if config.rope_scaling is not None:
        factor, low, high, original = config.rope_scaling
        rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = original
    content = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_base,
        "rope_parameters": rope,
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
    }
    part = folder / "model.safetensors.part"
    save_file(named, part, metadata={"format": "pt"})
    _settle(part, folder / "model.safetensors")
    part = folder / "config.json.part"
    part.write_text(json.dumps(content, indent=2), encoding="utf-8")
    _settle(part, folder / "config.json")


def _settle(part: Path, target: Path) -> None:
    """Flushes a finished file to disk and gives it its name."""
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, target)
