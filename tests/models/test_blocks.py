"""Blocks against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.models.blocks import Attention, RMSNorm, SqueezeExcite, SwiGLU, rotary_table, rotate
from gossamer.models.mobilenet import divisible
from gossamer.models.resnet import PadShortcut
from gossamer.models.unet import UNet


@pytest.mark.parametrize(("kv_heads", "causal"), [(4, False), (4, True), (2, True), (1, False)])
def test_attention_equals_a_loop_over_heads(kv_heads: int, causal: bool) -> None:
    attention = Attention(12, 4, kv_heads, 3, causal=causal).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = attention.q(x), attention.k(x), attention.v(x)
    heads = []
    for head in range(4):
        mine = slice(3 * head, 3 * head + 3)
        shared = head // (4 // kv_heads)
        theirs = slice(3 * shared, 3 * shared + 3)
        scores = q[..., mine] @ k[..., theirs].transpose(1, 2) / math.sqrt(3)
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., theirs])
    assert torch.allclose(attention(x), attention.out(torch.cat(heads, -1)), atol=1e-12)


def test_attention_refuses_heads_that_do_not_divide() -> None:
    for heads, kv_heads in ((5, 5), (4, 3), (4, 0)):
        with pytest.raises(ConfigError, match="do not divide"):
            Attention(12, heads, kv_heads)


def test_rotation_depends_on_the_distance_alone() -> None:
    cosine, sine = rotary_table(20, 8)
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = rotate(q.expand(20, 8), cosine, sine), rotate(k.expand(20, 8), cosine, sine)
    scores = turned_q @ turned_k.T
    for distance in range(5):
        along = scores.diagonal(distance)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-4)
    assert torch.allclose(turned_q.norm(dim=1), q.norm().expand(20))
    assert torch.equal(turned_q[0], q)


def test_rotary_pairs_are_the_two_halves() -> None:
    cosine, sine = rotary_table(2, 4, base=100.0)
    expected = torch.tensor([math.cos(1.0), math.cos(0.1)] * 2)  # rates 100^0 and 100^(-1/2)
    assert torch.allclose(cosine[1], expected)
    turned = rotate(torch.tensor([1.0, 0, 0, 0]), cosine[1], sine[1])
    assert torch.allclose(turned, torch.tensor([math.cos(1.0), 0, math.sin(1.0), 0]))


def test_llama3_scaling_keeps_fast_and_slows_slow_rates() -> None:
    plain, _ = rotary_table(2, 64, 10000.0)
    scaled, _ = rotary_table(2, 64, 10000.0, (8.0, 1.0, 4.0, 512))
    rates, slowed = plain[1, :32].double().acos(), scaled[1, :32].double().acos()
    turns = 512 * 10000.0 ** (-torch.arange(0, 64, 2).double() / 64) / (2 * math.pi)
    assert torch.allclose(slowed[turns > 4], rates[turns > 4])
    # Slow rates: cosine of a small angle loses digits in float32, so compare those that are not tiny.
    slow = (turns < 1) & (slowed > 1e-3)
    assert slow.any()
    assert torch.allclose(slowed[slow], rates[slow] / 8, rtol=0.1)


def test_norm_and_gate_equal_their_formulas() -> None:
    x = torch.randn(3, 6)
    norm = RMSNorm(6, eps=0.1)
    norm.weight.data = torch.arange(6.0)
    assert torch.allclose(norm(x), x / (x.pow(2).mean(1, keepdim=True) + 0.1).sqrt() * torch.arange(6.0))
    gate = SwiGLU(6, 4)
    assert torch.allclose(gate(x), (F.silu(x @ gate.gate.weight.T) * (x @ gate.up.weight.T)) @ gate.down.weight.T)
    squeeze = SqueezeExcite(4, 2)
    image = torch.randn(2, 4, 3, 3)
    factors = squeeze(image) / image
    assert torch.allclose(factors, factors[:, :, :1, :1].expand_as(factors), atol=1e-5)
    assert ((factors > 0) & (factors < 1)).all()


def test_padding_shortcut_by_hand() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = PadShortcut(2, 4, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert (y[:, [0, 3]] == 0).all()
    assert y[0, 1].flatten().tolist() == [0, 2, 8, 10]


def test_divisible_channels() -> None:
    assert [divisible(c) for c in (32, 16 * 0.5, 24 * 0.5, 96 * 0.75, 3)] == [32, 8, 16, 72, 8]


def test_unet_refuses_odd_sides() -> None:
    with pytest.raises(ShapeError, match="multiples of 4"):
        UNet(shape=(1, 10, 16))
    with pytest.raises(ShapeError, match="multiples of 4"):
        UNet()(torch.zeros(1, 1, 16, 18))
