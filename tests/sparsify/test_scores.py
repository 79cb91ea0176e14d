"""Scores against their definitions, computed another way."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.errors import ConfigError, DataError, NumericsError
from gossamer.sparsify import Sparsifier, select
from gossamer.sparsify.allocation import Global
from gossamer.sparsify.context import Context
from gossamer.sparsify.patterns import Unstructured
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import Grasp, Magnitude, Random, Snip, Synflow
from gossamer.sparsify.updates import SetTo


def context(model, data):
    groups = select(model)
    parameters = dict(model.named_parameters())
    return Context(
        model=model,
        groups=groups,
        patterns={g.name: Unstructured() for g in groups},
        masks={g.name: torch.ones(g.shape, dtype=torch.bool) for g in groups},
        weights={g.name: parameters[g.name].detach() for g in groups},
        data=data,
    )


def small(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).to(dtype)
    x = torch.randn(75, 6, dtype=dtype)
    return model, x, torch.arange(75) % 3


def test_snip_is_the_gradient_of_gates():
    model, x, y = small()
    scores = Snip()(context(model, [(x, y)]))
    gates = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters()}
    gated = {n: p.detach() * gates[n] for n, p in model.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(model, gated, (x,)), y)
    for name, grad in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
        torch.testing.assert_close(scores[name], grad.abs())


def test_grasp_against_finite_differences():
    model, x, y = small()
    score = Grasp(temperature=2.0, samples=25)
    scores = score(context(model, [(x, y)]))
    # the same two halves the score uses
    order = torch.argsort(y, stable=True).reshape(3, 25).T.reshape(-1)
    xs, ys = x[order], y[order]

    def gradient(parameters):
        total = None
        for half in (slice(0, None, 2), slice(1, None, 2)):
            leaves = {n: p.detach().requires_grad_() for n, p in parameters.items()}
            out = torch.func.functional_call(model, leaves, (xs[half],)) / 2.0
            grads = torch.autograd.grad(F.cross_entropy(out, ys[half]), list(leaves.values()))
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        return dict(zip(parameters, total, strict=True))

    weights = {n: p.detach() for n, p in model.named_parameters()}
    g = gradient(weights)
    eps = 1e-5
    plus = gradient({n: w + eps * g[n] for n, w in weights.items()})
    minus = gradient({n: w - eps * g[n] for n, w in weights.items()})
    for name, w in weights.items():
        hg = (plus[name] - minus[name]) / (2 * eps)
        torch.testing.assert_close(scores[name], w * hg, rtol=1e-3, atol=1e-9)


def test_synflow_conserves_flow():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)
    )
    scores = Synflow()(context(model, [(torch.zeros(2, 8), None)]))
    sums = [float(s.sum()) for s in scores.values()]
    assert max(sums) - min(sums) < 1e-10 * max(sums)


def deep():
    torch.manual_seed(0)
    widths = [64, *[50] * 9, 10]
    return nn.Sequential(*[m for a, b in pairwise(widths) for m in (nn.Linear(a, b, bias=False), nn.ReLU())])


def test_synflow_keeps_every_layer_alive_where_magnitude_does_not():
    data = [(torch.rand(4, 64), torch.zeros(4, dtype=torch.long))]
    model = deep()
    with torch.no_grad():
        model[4].weight.mul_(0.1)  # one layer of small weights
    for score, rounds, survives in ((Synflow(), 100, True), (Magnitude(), 1, False)):
        copy = deep()
        copy.load_state_dict(model.state_dict())
        opt = torch.optim.SGD(copy.parameters(), 0.1)
        recipe = Recipe("t", updates=(SetTo(score, 0.01, Global(allow_empty=True), rounds=rounds),))
        sp = Sparsifier(copy, opt, recipe, 10, data=data)
        alive = all(bool(m.any()) for m in sp.masks.values())
        assert alive == survives, (score, sp.history[-1])


def test_random_depends_on_name_not_order():
    model, x, y = small()
    ctx = context(model, [(x, y)])
    scores = Random()(ctx)
    ctx.groups = ctx.groups[::-1]
    again = Random()(ctx)
    assert all(torch.equal(scores[n], again[n]) for n in scores)
    assert not torch.equal(scores["0.weight"].flatten()[:15], scores["2.weight"].flatten())


def test_grasp_needs_every_class():
    model, x, y = small()
    with pytest.raises(DataError, match="class 1 has 10 samples"):
        Grasp()(context(model, [(x[y != 1], y[y != 1]), (x[y == 1][:10], y[y == 1][:10])]))
    with pytest.raises(DataError, match="class 1 has no sample"):
        Grasp()(context(model, [(x[y != 1], y[y != 1])]))


def test_scores_that_need_data_say_so():
    model, _, _ = small()
    with pytest.raises(ConfigError, match="data=loader"):
        Snip()(context(model, None))


def test_synflow_overflow_is_named():
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(8)])
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e38)
    with pytest.raises(NumericsError, match="SynFlow"):
        Synflow()(context(model.double(), [(torch.zeros(1, 4), None)]))
