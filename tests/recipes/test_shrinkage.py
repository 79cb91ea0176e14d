"""Iterative shrinkage: exact counts, the decay law, its limits, its helpers and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.errors import ConfigError, MaskError, NumericsError, ShapeError
from gossamer.kernels.topk import topk_mask
from gossamer.recipes.shrinkage import adjusted_nm, alpha_for, jump_at_freeze, rescaled
from gossamer.sparsify.lowest import SAMPLE, RankLowest, bracket, kept_count, largest
from gossamer.sparsify.patterns import NM, Block
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.testing.recipes import check_recipe

STEPS = 30


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))


def train(recipe, stop=STEPS, optimizer=torch.optim.Adam):
    model = network()
    opt = optimizer(model.parameters(), lr=1e-2)
    sp = Sparsifier(model, opt, recipe, STEPS)
    g = torch.Generator().manual_seed(1)
    for _ in range(stop):
        x = torch.randn(16, 12, generator=g)
        opt.zero_grad()
        F.mse_loss(model(x), x[:, :4] * x[:, 4:8]).backward()
        opt.step()
    return model, sp


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


ALL = [recipes.iss_p(0.7, 0.8), recipes.iss_h(0.7), recipes.iss_r(0.7), recipes.scratch(0.7)]


@pytest.mark.parametrize("recipe", ALL, ids=lambda r: r.name)
def test_the_last_mask_is_exact_and_final(recipe):
    model, sp = train(recipe)
    for name, mask in sp.entry_masks.items():
        assert int((~mask).sum()) == math.ceil(0.7 * mask.numel() - 1e-9)
        assert not model.get_parameter(name)[~mask].count_nonzero()
    early = train(recipe, stop=11)[1]
    assert all(torch.equal(early.masks[name], mask) for name, mask in sp.masks.items())


@pytest.mark.parametrize("recipe", ALL, ids=lambda r: r.name)
def test_recipes_pass_the_battery(recipe):
    check_recipe(recipe, optimizers=["adam"])


def test_alpha_0_is_hard_and_alpha_1_dense_until_the_freeze():
    assert same(train(recipes.iss_p(0.7, 0.0))[0], train(recipes.iss_h(0.7))[0])
    assert same(train(recipes.iss_p(0.7, 1.0), stop=9)[0], train(recipes.dense(), stop=9)[0])
    assert not same(train(recipes.iss_p(0.7, 1.0), stop=10)[0], train(recipes.dense(), stop=10)[0])


def test_scratch_is_the_static_mask_of_the_initial_weights():
    _, sp = train(recipes.scratch(0.7))
    for name, mask in sp.masks.items():
        initial = network().get_parameter(name).detach().abs()
        assert torch.equal(mask, topk_mask(initial, kept_count(0.7, mask.numel())))


def test_without_gradients_low_weights_decay_geometrically():
    model = network()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sp = Sparsifier(model, opt, recipes.iss_p(0.7, 0.8, 0.5), 20)
    for _ in range(6):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
    for name, mask in sp.masks.items():
        w = model.get_parameter(name).detach()
        assert torch.equal(w[mask], before[name][mask])
        torch.testing.assert_close(w[~mask], before[name][~mask] * 0.8**6)


def test_half_life_does_not_depend_on_the_number_of_steps():
    recipe = recipes.iss_p(0.7, half_life=13.5)
    assert recipe.weight_ops[0].alpha == pytest.approx(0.95, abs=1e-3)
    assert rescaled(0.95, 1000, 1000) == 0.95
    assert rescaled(0.95, 1000, 500) ** 500 == pytest.approx(0.95**1000)


@given(st.floats(0, 0.999), st.integers(1, 5000), st.floats(0.5, 1.0))
def test_kept_counts(p, total, cap):
    kept = kept_count(p, total, cap)
    assert 0 <= kept <= total
    gone = total - kept
    assert gone <= p * total + 1
    assert gone <= cap * total + 1e-6
    if cap == 1.0:
        assert gone == math.ceil(p * total - 1e-9)


@given(st.integers(200, 3000), st.floats(0.0, 1.0), st.sampled_from([100, 150]), st.booleans(), st.integers(0, 3))
def test_the_sampled_ranking_is_repaired_to_the_exact_one(total, share, sample, ties, seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(total, generator=g).abs()
    if ties:
        scores = (scores * 3).round()
    keep = round(share * total)
    assert torch.equal(largest(scores, keep, sample, g), topk_mask(scores, keep))


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_sampled_threshold_is_as_good_as_its_sample(p):
    scores = torch.randn(400_000).abs()
    low, high = bracket(scores, kept_count(p, scores.numel()), SAMPLE, torch.Generator().manual_seed(0))
    error = 3 * math.sqrt(p * (1 - p) / SAMPLE)
    middle = (float((scores < low).float().mean()) + float((scores < high).float().mean())) / 2
    assert abs(middle - p) < error
    assert float((scores < low).float().mean()) <= p <= float((scores <= high).float().mean())


def test_a_sample_trains_to_the_same_bits():
    sampled = recipes.iss_p(0.7, 0.8, sample=100)
    assert same(train(sampled)[0], train(recipes.iss_p(0.7, 0.8))[0])
    assert Recipe.from_yaml(sampled.to_yaml()) == sampled


def test_patterns():
    for pattern in (NM(1, 4), Block(4, 1)):
        _, sp = train(recipes.iss_p(0.7, 0.8, pattern=pattern))
        for mask in sp.masks.values():
            pattern.check(mask)


def test_nm_is_raised_until_it_divides():
    assert adjusted_nm(19, 20, [180]) == NM(1, 20, layout="oihw_flat")
    assert adjusted_nm(3, 5, [12]) == NM(2, 6, layout="oihw_flat")  # prunes 4 of 6
    assert adjusted_nm(89, 90, [540, 180]) == NM(1, 90, layout="oihw_flat")
    with pytest.raises(ConfigError, match="greatest common divisor is 6"):
        adjusted_nm(6, 7, [12, 18])
    with pytest.raises(ConfigError, match="no N:M pattern"):
        adjusted_nm(5, 5, [10])


def test_the_jump_is_the_loss_of_zeroing():
    model, sp = train(recipes.iss_p(0.7, 0.95), stop=9)
    x = torch.randn(50, 12)
    jump = jump_at_freeze(model, sp.entry_masks, lambda net: net(x).square().mean())
    assert jump["before"] == pytest.approx(float(model(x).square().mean().detach()))
    assert 0 < jump["ratio"] <= 1
    with torch.no_grad():
        for name, mask in sp.entry_masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0.0)
    assert jump["after"] == pytest.approx(float(model(x).square().mean().detach()))
    assert jump_at_freeze(model, sp.entry_masks, lambda net: net(x).square().mean())["ratio"] == 0


def test_alpha_for():
    assert alpha_for(2e-3, 1.0) == pytest.approx(0.99)
    assert alpha_for(1.0, 0.1) == 0.0
    for bad in ((0, 1, 0.2), (1, 0, 0.2), (1, 1, 2)):
        with pytest.raises(ConfigError, match="lr > 0"):
            alpha_for(*bad)


def test_bad_input():
    with pytest.raises(ConfigError, match=r"0 <= alpha <= 1, got 1\.2"):
        recipes.iss_p(0.9, 1.2)
    with pytest.raises(ConfigError, match="alpha"):
        rescaled(1.2, 10, 10)
    for steps in (0.0, -3.0):
        with pytest.raises(ConfigError, match="half_life is a positive number"):
            recipes.iss_p(half_life=steps)
    for limit in (-1.0, 0.0, math.inf):
        with pytest.raises(ConfigError, match="largest penalty of ISS-R"):
            recipes.iss_r(limit=limit)
    for sparsity in (1.0, -0.1):
        with pytest.raises(ConfigError, match="sparsity must lie in"):
            recipes.iss_h(sparsity)
    for pruning in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match="pruning is the fraction of the run"):
            recipes.iss_p(0.9, pruning=pruning)
    with pytest.raises(ConfigError, match="max_ratio"):
        RankLowest(0.9, max_ratio=0.0)
    with pytest.raises(ConfigError, match="sample"):
        RankLowest(0.9, sample=3)
    with pytest.raises(MaskError, match=r"2\.weight would be emptied"):  # smaller than 1 / (1 - p) weights
        train(recipes.iss_p(0.99))
    with pytest.raises(ShapeError, match="does not divide"):
        train(recipes.iss_p(pattern=NM(1, 7)))
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sp = Sparsifier(model, opt, recipes.iss_h(0.7), 10)
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"weights of 0\.weight hold 1 NaN"):
        opt.step()
    assert sp.step == 1


def test_a_cap_leaves_the_share_that_it_says():
    recipe = Recipe("capped", updates=(RankLowest(0.999, max_ratio=0.95, when=None),))
    _, sp = train(recipe, stop=1)
    assert [int(mask.sum()) for mask in sp.masks.values()] == [12, 4]
