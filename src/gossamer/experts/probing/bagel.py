"""The transformer of BAGEL: text and latent tokens with weights of their own in every layer, and attention in common.

Modules are named as in the published checkpoint, so its tensors fit without a map of keys and `PRESETS["bagel"]` finds
both streams. Left out: the vision tower, its connector and the autoencoder of pictures, whose tensors are skipped. The
published weights were not run here; shapes and names follow the released code and configuration.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import CheckpointError, ConfigError, ShapeError
from ...models.blocks import RMSNorm, rotary_table, rotate

SKIPPED = ("vit_model.", "vit_pos_embed.", "connector.")
STREAMS = ("", "_moe_gen")  # ends of the names of the understanding and the generation part
WEIGHTS = ("ema.safetensors", "model.safetensors")


@dataclass(frozen=True)
class BagelConfig:
    """Sizes; the defaults are those of BAGEL-7B-MoT.

    Args:
        width: of the states. hidden: of the feed-forwards. heads, kv_heads: of queries, of keys and values.
        vocabulary: of the text. latent: numbers of a latent token (2 x 2 of 16 channels). side: largest height and
            width of a picture in latent tokens.
    Raises:
        ConfigError: heads that do not divide.
    """

    width: int = 3584
    hidden: int = 18944
    depth: int = 28
    heads: int = 28
    kv_heads: int = 4
    vocabulary: int = 152064
    latent: int = 64
    side: int = 64
    rope: float = 1e6
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads) < 1 or self.width % self.heads or self.heads % self.kv_heads:
            raise ConfigError(f"width {self.width}, {self.heads} heads and {self.kv_heads} kv_heads do not divide")

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads


class _Mlp(nn.Module):
    def __init__(self, c: BagelConfig) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(c.width, c.hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(c.hidden, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class _Attention(nn.Module):
    """Projections and norms of both streams."""

    def __init__(self, c: BagelConfig) -> None:
        super().__init__()
        self.head = c.head
        for end in STREAMS:
            for part, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
                setattr(self, f"{part}_proj{end}", nn.Linear(c.width, heads * c.head))
            setattr(self, f"o_proj{end}", nn.Linear(c.heads * c.head, c.width, bias=False))
            for part in ("q", "k"):
                setattr(self, f"{part}_norm{end}", RMSNorm(c.head, c.eps))

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor], end: str) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, heads, tokens, head) of one stream."""
        q, k, v = (
            getattr(self, f"{part}_proj{end}")(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in "qkv"
        )
        q, k = getattr(self, f"q_norm{end}")(q), getattr(self, f"k_norm{end}")(k)
        return rotate(q, *rotary), rotate(k, *rotary), v


class _Layer(nn.Module):
    def __init__(self, c: BagelConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(c)
        for end in STREAMS:
            setattr(self, f"mlp{end}", _Mlp(c))
            setattr(self, f"input_layernorm{end}", RMSNorm(c.width, c.eps))
            setattr(self, f"post_attention_layernorm{end}", RMSNorm(c.width, c.eps))

    def finish(self, x: Tensor, mixed: Tensor, end: str) -> Tensor:
        """The residual additions of one stream."""
        x = x + getattr(self.self_attn, f"o_proj{end}")(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + getattr(self, f"mlp{end}")(getattr(self, f"post_attention_layernorm{end}")(x))
        return y

    def forward(
        self, und: Tensor, gen: Tensor | None, places: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        """Text attends to earlier text; latents to all text and to each other."""
        q, k, v = self.self_attn.project(self.input_layernorm(und), places[0], "")  # type: ignore[operator]
        done = self.finish(und, F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), "")
        if gen is None:
            return done, None
        normed = self.input_layernorm_moe_gen(gen)  # type: ignore[operator]
        gq, gk, gv = self.self_attn.project(normed, places[1], "_moe_gen")
        mixed = F.scaled_dot_product_attention(gq, torch.cat([k, gk], 2), torch.cat([v, gv], 2), enable_gqa=True)
        return done, self.finish(gen, mixed, "_moe_gen")


class _Places(nn.Module):
    """Embeddings of the places of latent tokens, row by row."""

    def __init__(self, c: BagelConfig) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(c.side**2, c.width))


class Bagel(nn.Module):
    """Text (B, T) and noisy latents (B, h w, latent) at the times t (B,) -> logits (B, T, vocabulary), velocity.

    >>> model = Bagel(BagelConfig(width=32, hidden=48, depth=2, heads=4, kv_heads=2, vocabulary=20, latent=4, side=4))
    >>> logits, velocity = model(torch.zeros(1, 3, dtype=torch.long), torch.randn(1, 4, 4), torch.rand(1), (2, 2))
    >>> logits.shape, velocity.shape
    (torch.Size([1, 3, 20]), torch.Size([1, 4, 4]))
    """

    def __init__(self, config: BagelConfig = BagelConfig()) -> None:
        super().__init__()
        self.config = c = config
        body = nn.Module()
        body.embed_tokens = nn.Embedding(c.vocabulary, c.width)
        body.layers = nn.ModuleList(_Layer(c) for _ in range(c.depth))
        body.norm, body.norm_moe_gen = RMSNorm(c.width, c.eps), RMSNorm(c.width, c.eps)
        self.language_model = nn.Module()
        self.language_model.model = body
        self.language_model.lm_head = nn.Linear(c.width, c.vocabulary, bias=False)
        self.vae2llm, self.llm2vae = nn.Linear(c.latent, c.width), nn.Linear(c.width, c.latent)
        self.time_embedder = nn.Module()
        self.time_embedder.mlp = nn.Sequential(nn.Linear(256, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.latent_pos_embed = _Places(c)

    def forward(
        self, tokens: Tensor, latents: Tensor | None = None, t: Tensor | None = None, shape: tuple[int, int] = (1, 1)
    ) -> tuple[Tensor, Tensor | None]:
        """Understanding alone where there are no latents.

        Args:
            shape: height and width of the picture in latent tokens. t: 0 is clean, 1 is noise.
        Raises:
            ShapeError: latents that are not (B, h w, latent), or larger than `side`.
        """
        body: Any = self.language_model.model
        und = body.embed_tokens(tokens)
        length = tokens.shape[1]
        cosine, sine = (x.to(und) for x in rotary_table(length + 1, self.config.head, self.config.rope))
        # all latents of a picture have the one place after the text
        places = ((cosine[:length], sine[:length]), (cosine[length:], sine[length:]))
        gen = None if latents is None or t is None else self._enter(latents, t, shape)
        for layer in body.layers:
            und, gen = layer(und, gen, places)
        logits: Tensor = self.language_model.lm_head(body.norm(und))  # type: ignore[operator]
        return logits, None if gen is None else self.llm2vae(body.norm_moe_gen(gen))

    def _enter(self, latents: Tensor, t: Tensor, shape: tuple[int, int]) -> Tensor:
        high, wide = shape
        if latents.shape[1:] != (high * wide, self.config.latent) or max(shape) > self.config.side:
            raise ShapeError(
                f"latents of a picture of {high} x {wide} must be (B, {high * wide}, {self.config.latent}), at most "
                f"{self.config.side} to a side, got {tuple(latents.shape)}"
            )
        rates = torch.exp(-math.log(10000.0) * torch.arange(128, device=t.device) / 128)
        waves = t.float()[:, None] * rates
        moment = self.time_embedder.mlp(torch.cat([waves.cos(), waves.sin()], 1).to(latents))  # type: ignore[operator]
        places = self.latent_pos_embed.pos_embed.view(self.config.side, self.config.side, -1)[:high, :wide]
        out: Tensor = self.vae2llm(latents) + moment[:, None] + places.flatten(0, 1)
        return out


def read_config(folder: str | Path) -> BagelConfig:
    """The sizes that a checkpoint folder names in `llm_config.json` and `config.json`.

    Raises:
        CheckpointError: no such files, or fields that are missing.
    """
    try:
        llm = json.loads((Path(folder) / "llm_config.json").read_text(encoding="utf-8"))
        whole = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        names = {
            "width": "hidden_size",
            "hidden": "intermediate_size",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "vocabulary": "vocab_size",
            "rope": "rope_theta",
            "eps": "rms_norm_eps",
        }
        patch, channels = whole.get("latent_patch_size", 2), whole.get("vae_config", {}).get("z_channels", 16)
        sizes = {field: llm[name] for field, name in names.items()}
        return BagelConfig(**sizes, latent=patch**2 * channels, side=whole.get("max_latent_size", 64))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} holds no configuration of BAGEL: {error!r}") from None


def load_bagel(folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> Bagel:
    """The transformer of a downloaded BAGEL checkpoint, in evaluation mode; nothing is fetched.

    Raises:
        CheckpointError: no configuration or weights, or tensors of another architecture (the first ones are named).
    """
    from safetensors import SafetensorError, safe_open

    config = read_config(folder)
    path = next((Path(folder) / name for name in WEIGHTS if (Path(folder) / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds none of {', '.join(WEIGHTS)}")
    with torch.device("meta"):
        model = Bagel(config).to(dtype)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            found = {name: file.get_tensor(name).to(dtype) for name in names if not name.startswith(SKIPPED)}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    odd = sorted(wanted.keys() ^ found.keys()) or [n for n, shape in wanted.items() if found[n].shape != shape]
    if odd:
        raise CheckpointError(f"{path} is of another architecture than its configuration says: {', '.join(odd[:3])}")
    model.load_state_dict(found, assign=True)
    return model.eval()
