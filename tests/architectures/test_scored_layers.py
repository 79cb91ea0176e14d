"""Sparse operations: the dense layer at keep 1, exact counts, closed-form gradients, magnitudes before training."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from gossamer.architectures.scored_layers import (
    SparseConv,
    SparseLinear,
    finish,
    kept,
    make_sparse,
    scaled_init,
    score_masks,
    scored_weight,
    set_keep,
    shares,
    train_scores,
)
from gossamer.errors import ConfigError


def net():
    torch.manual_seed(0)
    return make_sparse(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)))


def original(layer):
    return layer.parametrizations.weight.original


def test_keep_one_is_the_dense_layer():
    torch.manual_seed(0)
    dense = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    sparse = SparseConv(3, 4, 3, padding=1, stride=2)
    sparse.load_state_dict(
        {**dense.state_dict(), **{k: v for k, v in sparse.state_dict().items() if "param" in k}}, strict=False
    )
    with torch.no_grad():
        original(sparse).copy_(dense.weight)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(sparse(x), dense(x))
    dense(x).square().sum().backward()
    sparse(x).square().sum().backward()
    assert torch.equal(original(sparse).grad, dense.weight.grad)


def test_gradients_under_a_fixed_mask_are_right():
    w = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    mask = torch.rand(4, 6) > 0.5
    score = torch.ones(4, 6, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda v: scored_weight(v, score, mask).sin(), (w,))


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1, 0.05, 1 / 3])
def test_masks_hold_exactly_their_count(keep):
    model = net()
    set_keep(model, keep)
    for name, mask in score_masks(model).items():
        assert int(mask.sum()) == mask.numel() - int((1 - keep) * mask.numel()) == kept(mask.numel(), keep), name


def test_the_scores_gradient_is_g_times_w_times_the_sign():
    layer = SparseLinear(6, 4, bias=False, keep=0.25)
    share = next(shares(layer))[2]
    with torch.no_grad():
        share.score.copy_(torch.randn(4, 6))
    train_scores(layer, scores=True)
    x = torch.randn(9, 6)
    y = layer(x)
    g = torch.randn(9, 4)
    y.backward(g)
    assert torch.allclose(share.score.grad, (g.T @ x) * original(layer).detach() * share.score.sign(), atol=1e-6)
    assert torch.allclose(y, x @ (original(layer) * share.mask).T)
    top = share.score.abs().flatten().topk(kept(24, 0.25)).indices
    assert set(share.mask.flatten().nonzero().flatten().tolist()) == set(top.tolist())


def test_scaled_scores_prune_by_magnitude():
    model = net()
    set_keep(model, 0.2)
    scaled_init(model)
    for _, layer, share in shares(model):
        plain = nn.Linear(layer.in_features, layer.out_features)
        plain.weight.data.copy_(original(layer))
        prune.l1_unstructured(plain, "weight", amount=plain.weight.numel() - kept(plain.weight.numel(), 0.2))
        assert torch.equal(share.mask, plain.weight_mask.bool())
        assert share.score.abs().max() == pytest.approx((6 / layer.in_features) ** 0.5)


def test_finished_layers_are_plain_and_compute_the_same():
    model = net()
    set_keep(model, 0.2)
    x = torch.randn(3, 12)
    before = model(x)
    masks = finish(model)
    assert torch.equal(model(x), before)
    assert type(model[0]).__name__ == "Linear"
    assert set(masks) == {"0.weight", "2.weight"}
    assert all(int(model.get_parameter(name).count_nonzero()) == int(mask.sum()) for name, mask in masks.items())


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(keep):
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        set_keep(net(), keep)


def test_a_share_that_empties_a_layer_names_it():
    model = net()
    with pytest.raises(ConfigError, match=r"leaves 2 none of its 100 weights; at least 0\.01"):
        set_keep(model, 0.005)
    assert all(share.keep == 1 for _, _, share in shares(model))
