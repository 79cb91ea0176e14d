"""Progressive gradient flow: exact decays and frames, identities with dense and STE, exact resume, what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.errors import ConfigError, ShapeError
from gossamer.maths.schedules import Constant, Fade, Linear, Steps
from gossamer.recipes.progressive import GradientNoise, beta_for, geometric_frames, linear_decay, stepwise_frames
from gossamer.sparsify import Recipe, Sparsifier
from gossamer.sparsify.accounting import flops, training_flops
from gossamer.sparsify.estimators import SoftMask, master
from gossamer.sparsify.patterns import NM
from gossamer.testing import check_recipe
from gossamer.testing.recipes import batch, train

DECAYS = {
    "linear": recipes.mdgf_linear(1, 8),
    "linear, dense first": recipes.mdgf_linear(1, 8, dense=0.2, finetune=0.2),
    "exponential": recipes.mdgf_exponential(1, 8),
    "exact gradient": recipes.mdgf_exponential(1, 8, exact_grad=True),
    "stepwise": recipes.sdgf_stepwise(1, 8, finetune=0.2),
    "stepwise, dense first": recipes.sdgf_stepwise(1, 8, dense=0.3, finetune=0.3),
    "geometric": recipes.sdgf_geometric(1, 2, finetune=0.1),
    "single layers": recipes.sdgf_stepwise(2, 4, layers=(("0.*", (1, 8)),)),
}


def weights(model):
    return {name: master(model, name).detach() for name in ("0.weight", "3.weight", "5.weight")}


def soft_values(recipe, steps=40):
    values = []
    train(recipe, steps=steps, watch=lambda sp: values.append(float(sp.model[0].parametrizations.weight[0].soft)))
    return values


def densities(recipe, steps, **options):
    """Density of the first layer's mask behind the forward pass of each step."""
    seen = []

    def watch(sp):
        seen.append(float(sp.masks["0.weight"].float().mean()))
        sp.check()

    train(recipe, steps=steps, watch=watch, **options)
    return seen


# ---- the battery


@pytest.mark.parametrize("name", DECAYS)
def test_bits_from_yaml_resume_and_clean_end(name):
    """Resuming happens in mid-decay and in mid-frame: at half of the run."""
    check_recipe(DECAYS[name], optimizers=["nesterov", "adam"])


# ---- identities


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_soft_one_is_dense_and_soft_zero_is_ste(optimizer):
    base = recipes.ste(1, 8)
    dense, _, _ = train(recipes.dense(), optimizer)
    one, _, _ = train(base.replace(family=SoftMask(Constant(1.0))), optimizer)
    assert all(torch.equal(w, weights(dense)[name]) for name, w in weights(one).items())
    straight, _, _ = train(base, optimizer)
    hard, _, _ = train(base.replace(family=SoftMask(Constant(0.0))), optimizer)
    table, _, _ = train(base.replace(pattern=Steps(((0.0, NM(1, 8)),))), optimizer)
    for model in (hard, table):
        assert all(torch.equal(w, weights(straight)[name]) for name, w in weights(model).items())


def test_the_dense_phase_is_dense_training():
    dense, _, _ = train(recipes.dense(), stop=8)
    for name in ("linear, dense first", "stepwise, dense first"):
        recipe = (
            recipes.mdgf_linear(1, 8, dense=0.4, finetune=0.2)
            if "linear" in name
            else recipes.sdgf_stepwise(1, 8, dense=0.4, finetune=0.2)
        )
        model, _, _ = train(recipe, stop=8)
        assert all(torch.equal(w, weights(dense)[key]) for key, w in weights(model).items())


# ---- mask decay


def test_linear_decay_by_hand():
    values = soft_values(recipes.mdgf_linear(1, 8, dense=0.25, finetune=0.25))
    wanted = [max(0.0, 1 - max(0, step - 10) / 20) for step in range(1, 41)]
    assert values == pytest.approx(wanted, abs=1e-6)
    assert values[29:] == [0.0] * 11  # exactly, from step 30 on


def test_exponential_decay_by_hand():
    values = soft_values(recipes.mdgf_exponential(1, 8, efolds=5.0, dense=0.25, finetune=0.25))
    wanted = [math.exp(-5 * max(0, step - 10) / 20) if step < 30 else 0.0 for step in range(1, 41)]
    assert values == pytest.approx(wanted, rel=1e-6)
    assert values[29] == 0.0


@pytest.mark.parametrize(("beta", "steps"), [(2e-4, 100_000), (1e-3, 1000), (3e-3, 10_000), (0.7, 30), (0.013, 977)])
def test_linear_decay_reaches_zero_at_the_step_that_beta_says(beta, steps):
    soft = Linear(1.0, 0.0, 0.0, linear_decay(beta, steps))
    last = math.ceil(1 / beta)
    assert soft(last / steps) == 0.0
    assert soft((last - 1) / steps) == pytest.approx(1 - beta * (last - 1), abs=1e-9)
    assert all(0 <= soft(t / steps) <= 1 for t in range(0, steps + 1, max(1, steps // 50)))
    assert all(soft(t / steps) == pytest.approx(1 - beta * t) for t in range(0, last, max(1, last // 10)))


def test_beta_for_is_the_fade_of_the_recipe():
    beta = beta_for(1e-3, 500)
    fade = Fade(beta * 500, 0.0, 0.5)
    assert fade(0.25) == pytest.approx(math.exp(-beta * 250))
    assert math.exp(-beta * 500) == pytest.approx(1e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_the_gradient_is_straight_or_exact(exact):
    layer = nn.Linear(8, 3, bias=False).double()
    recipe = Recipe("s", pattern=NM(1, 4), family=SoftMask(Constant(0.25), exact), updates=recipes.ste().updates)
    sparsifier = Sparsifier(layer, torch.optim.SGD(layer.parameters(), 0.1), recipe, 5)
    mask, c = sparsifier.masks["weight"], torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(layer.weight, torch.where(mask, master(layer, "weight"), 0.25 * master(layer, "weight")))
    (layer.weight * c).sum().backward()
    factor = torch.where(mask, 1.0, 0.25).double() if exact else torch.ones(3, 8).double()
    assert torch.equal(master(layer, "weight").grad, c * factor)
    if exact:
        forward = layer.parametrizations.weight[0]
        assert torch.autograd.gradcheck(forward, (torch.randn(3, 8, dtype=torch.float64, requires_grad=True),))


# ---- structure decay


def test_frames():
    assert stepwise_frames(1, 8) == [(7, 8), (4, 8), (2, 8), (1, 8)]
    assert stepwise_frames(1, 16) == [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]
    assert stepwise_frames(2, 4) == [(3, 4), (2, 4)]
    assert stepwise_frames(3, 8) == [(7, 8), (3, 8)]
    assert stepwise_frames(1, 48) == [(47, 48), (24, 48), (12, 48), (6, 48), (3, 48), (1, 48)]
    assert stepwise_frames(3, 4) == [(3, 4)]
    assert geometric_frames(1, 8) == [(8, 64), (4, 32), (2, 16), (1, 8)]


def test_the_density_is_that_of_the_frame():
    steps, dense, finetune = 40, 0.2, 0.2
    wanted = []
    for t in range(1, steps + 1):  # the forward pass of step t, counted from 0, follows t updates
        tau = t - dense * steps
        frame = min(3, math.floor(4 * tau / ((1 - dense - finetune) * steps) + 1e-9))
        wanted.append(1.0 if tau < 0 else (7 / 8, 4 / 8, 2 / 8, 1 / 8)[frame])
    assert densities(recipes.sdgf_stepwise(1, 8, dense=dense, finetune=finetune), steps) == wanted
    assert set(densities(recipes.sdgf_geometric(1, 2, finetune=0.2), steps)) == {0.5}


@pytest.mark.parametrize("steps", [800, 977, 7000])
@pytest.mark.parametrize(("dense", "finetune"), [(0.0, 0.1), (0.1, 0.2), (0.0, 0.7), (1 / 3, 1 / 7)])
def test_frames_change_at_the_step_that_the_formula_says(steps, dense, finetune):
    table = recipes.sdgf_stepwise(1, 16, dense=dense, finetune=finetune).pattern
    frames = [NM(*pair) for pair in stepwise_frames(1, 16)]
    for t in range(steps + 1):
        tau = t - dense * steps
        index = min(4, math.floor(5 * tau / ((1 - dense - finetune) * steps) + 1e-6))
        assert table(t / steps) == (frames[index] if tau >= -1e-6 else NM(2, 2, tail="keep"))


def test_training_flops_by_hand():
    """Two layers, four equal frames over the whole run: forward and input gradient n/m, weight gradient dense."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    recipe = recipes.sdgf_stepwise(1, 8, finetune=0.0)
    counts = flops(model, torch.randn(1, 16))
    sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 40)
    for _ in range(40):
        model(torch.randn(4, 16)).square().mean().backward()
        sparsifier.optimizer.step()
        sparsifier.optimizer.zero_grad()
    cost = training_flops(counts, sparsifier.history, recipe=recipe)
    mean_density = (7 / 8 + 4 / 8 + 2 / 8 + 1 / 8) / 4
    assert cost.relative == pytest.approx((2 * mean_density + 1) / 3, abs=0.02)
    faded = training_flops(counts, sparsifier.history, recipe=recipes.mdgf_linear(1, 8, finetune=0.0))
    assert faded.relative == pytest.approx(1.0)  # a soft mask saves nothing until it is hard


# ---- the log of gradients


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_noise_is_what_the_tensors_say(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    sparsifier = Sparsifier(model, kind(model.parameters(), 0.01), recipes.mdgf_exponential(1, 8), 20)
    noise, variances = GradientNoise(sparsifier, every=5, last=2), []
    for step in range(20):
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        sparsifier.optimizer.step()
        noise()
        grads = [master(model, name).grad for name in sparsifier.masks]
        variances.append(sum(float(g.double().var(correction=0)) for g in grads) / 2)
        sparsifier.optimizer.zero_grad()
    assert [row["step"] for row in noise.rows] == [5, 10, 15, 20]
    assert noise.summary()["variance"] == pytest.approx((variances[14] + variances[19]) / 2, rel=1e-4)
    assert ("second_moment" in noise.summary()) is (optimizer == "adam")
    assert noise.summary()["pruned_variance"] > 0


# ---- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.mdgf_linear(1, 8, dense=0.5, finetune=0.5), "sum is below 1"),
        (lambda: recipes.sdgf_stepwise(1, 8, finetune=-0.1), "fractions >= 0"),
        (lambda: recipes.mdgf_exponential(4, 4), "prunes nothing"),
        (lambda: recipes.mdgf_exponential(5, 4), r"n in 1\.\.m"),
        (lambda: recipes.mdgf_exponential(efolds=0.0), "e-folds"),
        (lambda: recipes.mdgf_exponential(efolds=5.0, finetune=0.0), "exported network would differ"),
        (lambda: recipes.mdgf_linear(1, 8, 0.5, finetune=0.65), r"still 0\.3 when fine-tuning starts"),
        (lambda: recipes.mdgf_linear(1, 8, -0.5), "positive fraction"),
        (lambda: linear_decay(-1e-4, 100), "beta must be positive"),
        (lambda: linear_decay(1e-3, 700), r"leaves the mask at 0\.3 after 700 steps"),
        (lambda: beta_for(1.5, 100), r"final in \(0, 1\)"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_stage_that_does_not_divide_is_named():
    model = nn.Sequential(nn.Linear(24, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ShapeError, match=r"0\.weight: 8:64 does not divide 24 entries"):
        Sparsifier(model, optimizer, recipes.sdgf_geometric(1, 8), 20)
    sparsifier = Sparsifier(model, optimizer, recipes.sdgf_geometric(1, 8, tail="proportional"), 20)
    assert sparsifier.density() == 1 / 8
    assert recipes.mdgf_exponential(efolds=14.0, finetune=0.0).family.soft(1.0) == 0.0
