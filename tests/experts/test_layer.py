"""The layer against its reference loop and against transformers; losses at their exact values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.experts import (
    ExpertChoice,
    Experts,
    MoE,
    TopK,
    balance_loss,
    importance_loss,
    moe_layers,
    routed,
    update_bias,
    z_loss,
)
from gossamer.experts.dispatch import DISPATCH


def layer(width=8, hidden=16, router=None, seed=0, **options):
    torch.manual_seed(seed)
    experts = Experts(4, width, hidden, gated=options.pop("gated", False), bias=options.pop("bias", True))
    if experts.up_bias is not None:
        nn.init.normal_(experts.up_bias)
        nn.init.normal_(experts.down_bias)
    return MoE(experts, router or TopK(2), std=1.0, **options)


def results(moe, dispatch, x, mask=None):
    """Output and all gradients."""
    moe.dispatch = DISPATCH[dispatch]
    x = x.clone().requires_grad_()
    y = moe(x, mask)
    weight = torch.linspace(-1, 1, y.numel()).view(y.shape)
    grads = torch.autograd.grad((y * weight).sum(), [x, *moe.parameters()])
    return [y.detach(), *grads]


@pytest.mark.parametrize("dispatch", ["grouped", "padded", "einsum"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "router", [TopK(2), TopK(2, capacity_factor=0.6), ExpertChoice(0.8)], ids=lambda r: str(r)[:12]
)
@pytest.mark.parametrize("width", [8, 5])
def test_every_dispatch_equals_the_loop_with_gradients(dispatch, gated, router, width):
    moe = layer(width, 12, router, gated=gated)
    x = torch.randn(2, 9, width)
    mask = torch.arange(18).view(2, 9) % 5 > 0
    for one, two in zip(results(moe, "loop", x, mask), results(moe, dispatch, x, mask), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("dispatch", list(DISPATCH))
def test_all_tokens_to_one_expert(dispatch):
    moe = layer(router=TopK(1, renormalise=False))
    moe.gate.weight.data.zero_()
    moe.gate.weight.data[2] = 1.0
    x = torch.rand(7, 8) + 0.1
    found = results(moe, dispatch, x)
    share = F.linear(x, moe.gate.weight).softmax(-1)[:, 2:3]
    assert torch.allclose(found[0], share * moe.experts.one(2, x), atol=1e-5)
    assert all(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize("dispatch", list(DISPATCH))
def test_no_token_at_all(dispatch):
    moe = layer()
    found = results(moe, dispatch, torch.zeros(0, 8))
    assert found[0].shape == (0, 8)
    assert all(not grad.any() for grad in found[1:])


def test_dropped_and_padding_tokens_get_zero():
    moe = layer(router=TopK(1, renormalise=False, capacity_factor=0.5))
    mask = torch.ones(12, dtype=torch.bool)
    mask[:3] = False
    with routed(moe) as plans:
        y = moe(torch.randn(12, 8), mask)
    gone = plans[""][0].dropped[0]
    assert gone.any()
    assert not y[gone | ~mask].any()
    assert y[~gone & mask].any(-1).all()


@pytest.mark.parametrize("dispatch", ["grouped", "loop"])
def test_equals_mixtral_with_the_same_weights(dispatch):
    pytest.importorskip("transformers", reason="the peer is transformers' own block")
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    theirs = MixtralSparseMoeBlock(config)
    ours = MoE(Experts(4, 16, 24, nn.SiLU(), gated=True, bias=False), TopK(2), dispatch=dispatch)
    torch.manual_seed(1)
    pairs = [
        (theirs.gate.weight, ours.gate.weight),
        (theirs.experts.gate_up_proj, ours.experts.up),
        (theirs.experts.down_proj, ours.experts.down),
    ]
    for a, b in pairs:
        nn.init.normal_(a, std=0.3)
        b.data.copy_(a.data)
    x, weight = torch.randn(2, 10, 16), torch.randn(2, 10, 16)
    one, two = theirs(x), ours(x)
    assert torch.allclose(one, two, atol=1e-5)
    grads = [
        torch.autograd.grad((y * weight).sum(), part)
        for y, part in zip((one, two), zip(*pairs, strict=True), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_gate_stays_in_float32_under_autocast():
    moe = layer()
    with routed(moe) as plans, torch.autocast("cpu", torch.bfloat16):
        moe(torch.randn(6, 8))
    assert plans[""][0].aux["logits"].dtype == torch.float32


def test_half_precision_tokens():
    moe = layer()
    x = torch.randn(6, 8)
    full = moe(x)
    moe.experts.to(torch.bfloat16)
    assert moe(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(moe(x.bfloat16()).float(), full, atol=0.1)


def test_balance_loss_is_1_at_balance_and_e_when_one_takes_all():
    moe = layer(width=4)
    moe.gate.weight.data = torch.eye(4) * 1e4
    spread, crowded = torch.eye(4).repeat(3, 1), torch.eye(4)[:1].repeat(6, 1)
    for x, expected in ((spread, 1.0), (crowded, 4.0)):
        with routed(moe) as plans:
            moe(x)
        assert balance_loss(plans).item() == pytest.approx(expected)
        assert balance_loss(plans, pooled=True).item() == pytest.approx(expected)


def test_balance_loss_equals_transformers():
    pytest.importorskip("transformers", reason="the peer is transformers' own loss")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    moe = layer()
    mask = torch.arange(30) % 4 > 0
    with routed(moe) as plans:
        moe(torch.randn(30, 8), mask)
    logits = plans[""][0].aux["logits"][0]
    theirs = load_balancing_loss_func((logits,), 4, 2, mask.view(1, -1))
    assert balance_loss(plans, count="picks").item() == pytest.approx(theirs.item() / 2, rel=1e-5)


def test_pooled_balance_overlooks_opposite_layers():
    """Two layers that send everything to different experts look half as bad when they are averaged."""
    moe = nn.Sequential(layer(width=4), layer(width=4))
    for part, row in zip(moe, (0, 1), strict=True):
        part.gate.weight.data.zero_()
        part.gate.weight.data[row] = 1e4
    with routed(moe) as plans:
        for part in moe:
            part(torch.ones(5, 4))
    assert balance_loss(plans).item() == pytest.approx(4.0)
    assert balance_loss(plans, pooled=True).item() == pytest.approx(2.0)


def test_z_and_importance_by_hand():
    moe = layer()
    with routed(moe) as plans:
        moe(torch.randn(10, 8))
    logits = plans[""][0].aux["logits"][0]
    assert z_loss(plans).item() == pytest.approx(logits.exp().sum(-1).log().pow(2).mean().item(), rel=1e-5)
    total = logits.softmax(-1).sum(0)
    assert importance_loss(plans).item() == pytest.approx(((total.std(unbiased=False) / total.mean()) ** 2).item())


def test_the_bias_balances_without_a_loss():
    moe = layer(width=4, router=TopK(1, renormalise=False))
    x = torch.randn(200, 4) + 0.7
    loads = []
    for _ in range(150):
        with routed(moe) as plans, torch.no_grad():
            moe(x)
        loads.append(int(plans[""][0].counts.max()))
        update_bias(moe, plans[""][0], 0.01)
    assert loads[0] > 80
    assert loads[-1] < 65
    assert "selection_bias" in moe.state_dict()


def test_a_checkpointed_layer_is_counted_once_with_gradient():
    from torch.utils.checkpoint import checkpoint

    moe = layer()
    x = torch.randn(6, 8, requires_grad=True)
    with routed(moe) as plans:
        y = checkpoint(moe, x, use_reentrant=False)
    (y.sum() + balance_loss(plans)).backward()
    assert len(plans[""]) == 1
    assert moe.gate.weight.grad.any()


def test_bad_input():
    moe = layer()
    with pytest.raises(ShapeError, match="width 8"):
        moe(torch.randn(3, 7))
    with pytest.raises(NumericsError, match="diverged"):
        moe(torch.full((3, 8), float("nan")))
    with pytest.raises(ConfigError, match="unknown dispatch 'loops'; did you mean 'loop'"):
        layer(dispatch="loops")
    with pytest.raises(ConfigError, match="no expert layer"):
        moe_layers(nn.Linear(2, 2))
    with routed(moe) as plans:
        pass
    with pytest.raises(ConfigError, match="no forward pass"):
        balance_loss(plans)
