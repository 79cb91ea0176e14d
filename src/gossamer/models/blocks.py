"""Building blocks: convolution with normalisation, attention, norms, rotary positions, feed-forwards."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import ConfigError


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias ("same" padding for odd kernels), batch normalisation, optional activation.

    The layers are named conv, bn and act.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs))
    if activation is not None:
        layers["act"] = activation
    return nn.Sequential(layers)


def pooled_head(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Global average pool and linear classifier: (B, channels, H, W) -> (B, classes)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


def he_init(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / fan_out) (He et al. 2015, eq. 14); everything else as torch made it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32.

    Source: Zhang & Sennrich 2019.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_table(
    length: int,
    width: int,
    base: float = 10000.0,
    scaling: tuple[float, float, float, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, width) of rotary positions; the two halves of the width form the pairs.

    Args:
        length: positions 0 ... length - 1.
        width: of one head, even.
        base: of the geometric series of rates.
        scaling: Llama 3's (factor, low_freq_factor, high_freq_factor, original context): rates that turn fewer
            than `low` times in the original context are divided by `factor`, those that turn more than `high`
            times stay, between them it is linear in the number of turns.
    Source: Su et al. 2021 (RoPE), in the half-split layout of Llama.
    """
    rates = base ** (-torch.arange(0, width, 2).float() / width)
    if scaling is not None:
        factor, low, high, original = scaling
        turns = original * rates / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        rates = rates * (kept + (1 - kept) / factor)
    angles = torch.outer(torch.arange(length).float(), rates)
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos(), doubled.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (..., length, width) rotated by its position; the tables are (length, width)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Attention(nn.Module):
    """Multi-head attention (B, length, width) -> (B, length, width), with grouped keys and values on request.

    Args:
        width: of the model.
        heads: query heads.
        kv_heads: key and value heads, each shared by heads / kv_heads query heads; default: `heads`.
        head_width: width of one head; default: width / heads.
        bias: on the four projections.
        causal: a position sees itself and those before it.
    Raises:
        ConfigError: heads that do not divide.
    Source: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_width: int | None = None,
        *,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if min(heads, kv_heads) < 1 or heads % kv_heads or (head_width is None and width % heads):
            raise ConfigError(f"width {width}, {heads} heads and {kv_heads} kv_heads do not divide")
        self.head_width = width // heads if head_width is None else head_width
        self.grouped, self.causal = kv_heads != heads, causal
        self.q = nn.Linear(width, heads * self.head_width, bias=bias)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.out = nn.Linear(heads * self.head_width, width, bias=bias)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = (self._heads(projection(x)) for projection in (self.q, self.k, self.v))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.grouped)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, length, heads * head_width) -> (B, heads, length, head_width)."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases. Source: Shazeer 2020."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class FeedForward(nn.Module):
    """Linear, GELU, linear, with biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SqueezeExcite(nn.Module):
    """Scales channels by a sigmoid of their pooled values: (B, C, H, W) -> same. Source: Hu et al. 2018."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(pooled))))
