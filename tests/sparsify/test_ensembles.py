"""Ensembles: structure of group-to-group masks, growth inside them, their fast path."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer import recipes
from gossamer.errors import ConfigError, MaskError, NumericsError, ShapeError
from gossamer.models import build
from gossamer.sparsify import Recipe, Select, Sparsifier
from gossamer.sparsify.ensembles import GroupLinear, GroupToGroup, fan_in, group_sizes
from gossamer.sparsify.statistics import correlation


def random_scores(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(
    out=st.integers(1, 40),
    inputs=st.integers(1, 40),
    groups=st.integers(1, 6),
    sources=st.integers(1, 6),
    data=st.data(),
)
def test_counts_are_exact_and_units_of_a_group_share_their_inputs(out, inputs, groups, sources, data):
    groups, sources = min(groups, out), min(sources, inputs)
    k = data.draw(st.integers(1, sources))
    pattern = GroupToGroup(groups, k, sources)
    mask = pattern.project(random_scores(out, inputs, seed=data.draw(st.integers(0, 99))))
    assert int(mask.sum()) == pattern.fixed((out, inputs))
    pattern.check(mask)
    assert len({tuple(row.tolist()) for row in mask}) <= groups
    assert set(mask.sum(1).tolist()) == {inputs if k == sources else k * (inputs // sources)}


@pytest.mark.parametrize("seed", range(8))
def test_every_input_group_is_heard_where_there_are_connections_enough(seed):
    for k, groups in ((1, 8), (2, 8), (2, 4)):
        chosen = GroupToGroup(groups, k, 8).graph(random_scores(groups * 3, 40, seed=seed))
        assert chosen.sum(1).tolist() == [k] * groups
        assert bool(chosen.any(0).all())


def test_density_is_the_formula():
    pattern = GroupToGroup(4, 1, p_in=0.5, p_out=0.25)
    mask = pattern.project(random_scores(16, 16))
    assert mask.float().mean() == 1 / 4 * 0.5 + 3 / 4 * 0.25
    mask = GroupToGroup(4, 2).project(random_scores(8, 8, 3, 3))
    assert mask.float().mean() == 0.5
    assert bool((mask.flatten(2).all(2) == mask.flatten(2).any(2)).all())  # whole kernels


def test_limits_are_dense_and_regular_masks():
    assert bool(GroupToGroup(4, 4).project(random_scores(12, 8)).all())
    assert bool(GroupToGroup(1, 1).project(random_scores(12, 8)).all())
    regular = GroupToGroup(12, 3, 8).project(random_scores(12, 8))
    assert regular.sum(1).tolist() == [3] * 12
    scores = random_scores(12, 8)
    assert bool((regular == (scores >= scores.topk(3, 1).values[:, -1:])).all() | (regular.any(0).all()))


def test_identity_keeps_streams():
    chosen = GroupToGroup(4, 2, identity=True).graph(random_scores(8, 8))
    assert bool(chosen.diagonal().all())


def test_illegal_masks_are_found():
    pattern = GroupToGroup(4, 1)
    mask = pattern.project(random_scores(8, 8))
    wrong = mask.clone()
    wrong[0] = mask[0].roll(1)
    with pytest.raises(MaskError, match="not of pattern"):
        pattern.check(wrong)
    with pytest.raises(MaskError, match="keeps 16 of 64"):
        pattern.project(random_scores(8, 8), 17)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: group_sizes(3, 4), ShapeError, "3 units cannot form 4 groups"),
        (lambda: GroupToGroup(4, 5), ConfigError, r"k must be in 1\.\.4"),
        (lambda: GroupToGroup(4, 1, p_in=1.5), ConfigError, r"p_in must be in \[0, 1\], got 1.5"),
        (lambda: fan_in(0.01, 8), ConfigError, "choose at least 0.0625"),
        (lambda: recipes.g2gnet(growth="hebb"), ConfigError, "hebbian"),
        (lambda: correlation(torch.ones(1, 2), torch.ones(1, 2)), ShapeError, "batch of at least 2"),
        (lambda: GroupToGroup(2, 1).project(torch.full((4, 4), torch.nan)), NumericsError, "NaN"),
        (lambda: GroupToGroup(2, 1).fixed((4,)), ShapeError, r"needs a weight \(out, in"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_fast_path_equals_the_masked_layer():
    layer = nn.Linear(24, 16)
    mask = GroupToGroup(4, 2, 6).project(random_scores(16, 24))
    fast = GroupLinear(layer, mask, 4)
    assert sum(p.numel() for p in fast.parameters()) == int(mask.sum()) + 16
    one, two = (torch.randn(5, 3, 24).requires_grad_() for _ in range(2))
    with torch.no_grad():
        two.copy_(one)
    slow = nn.functional.linear(one, layer.weight * mask, layer.bias)
    torch.testing.assert_close(fast(two), slow, rtol=1e-6, atol=1e-6)
    (slow**2).sum().backward()
    (fast(two) ** 2).sum().backward()
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-5, atol=1e-5)
    picked = torch.stack([layer.weight.grad[4 * g : 4 * g + 4, fast.index[g]].T for g in range(4)])
    torch.testing.assert_close(fast.weight.grad, picked, rtol=1e-5, atol=1e-5)
    with pytest.raises(MaskError, match="share their inputs"):
        GroupLinear(layer, torch.rand(16, 24) > 0.5, 4)


def test_correlations_are_numpys_and_constants_score_zero():
    x, y = torch.randn(50, 3), torch.randn(50, 2)
    x[:, 1] = 4.0
    found = correlation(7.0 * y, x)
    np.testing.assert_allclose(found[:, 0], [np.corrcoef(y[:, i], x[:, 0])[0, 1] for i in range(2)], atol=1e-6)
    assert found[:, 1].tolist() == [0.0, 0.0]


def modularity(model, groups):
    """Newman's modularity of the graph of the units of two layers under the partition into groups."""
    graph = nx.Graph()
    weight = model[1].weight
    sizes = [weight.shape[1] // groups, weight.shape[0] // groups]
    parts = [set() for _ in range(groups)]
    for side, count in enumerate((weight.shape[1], weight.shape[0])):
        for unit in range(count):
            parts[unit // sizes[side]].add((side, unit))
            graph.add_node((side, unit))
    for i, j in weight.nonzero().tolist():
        graph.add_edge((1, i), (0, j))
    return nx.community.modularity(graph, parts)


def train(recipe, steps=40):
    torch.manual_seed(0)
    model = build("mlp", shape=(1, 8, 8), hidden=(64,), norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, recipe, steps)
    counts = {name: int(mask.sum()) for name, mask in sparsifier.masks.items()}
    for _ in range(steps):
        x = torch.randn(32, 1, 8, 8)
        nn.functional.cross_entropy(model(x), (x[:, 0, 0] > 0).sum(1) % 10).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == counts
    moved = sum(row["flips"] for row in sparsifier.history)
    return sparsifier.finalize(), moved


def test_streams_dissolve_under_free_growth_and_stay_under_growth_within():
    streams = {"groups": 4, "sparsity": 0.75, "identity": True, "p_in": 0.8, "every": 4, "rate": 0.5}
    still, _ = train(recipes.g2gnet(growth=None, **{k: v for k, v in streams.items() if k not in ("every", "rate")}))
    free, moved = train(recipes.g2gnet(**streams))
    within, also = train(recipes.g2gnet(**streams, within=True))
    assert moved > 0
    assert also > 0
    start = modularity(still, 4)
    pairs = within[1].weight.reshape(4, 16, 4, 16).count_nonzero((1, 3))
    assert torch.equal(pairs > 0, torch.eye(4, dtype=torch.bool))  # no edge leaves its stream
    assert modularity(within, 4) == pytest.approx(start, abs=0.01)
    assert modularity(free, 4) < start - 0.1


def test_without_moves_nothing_changes():
    still, moved = train(recipes.g2gnet(rate=0.0, every=5, groups=4))
    static, _ = train(recipes.g2gnet(growth=None, groups=4))
    assert moved == 0
    for one, two in zip(still.parameters(), static.parameters(), strict=True):
        assert torch.equal(one, two)


def test_grown_edges_were_off_and_have_the_largest_correlation():
    recipe = recipes.g2gnet(groups=4, every=2, rate=0.2, select=Select(last_dense=True))
    torch.manual_seed(0)
    model = build("mlp", shape=(1, 8, 8), hidden=(32,), norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, optimizer, recipe, 10)
    for step in range(2):
        x = torch.randn(64, 1, 8, 8)
        before = sparsifier.masks["fc1.weight"].clone()
        with torch.no_grad():
            wanted = correlation(model[1](x.flatten(1)), x.flatten(1)).abs()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert (step == 1) == (not torch.equal(before, sparsifier.masks["fc1.weight"]))
    new = sparsifier.masks["fc1.weight"] & ~before
    refused = ~sparsifier.masks["fc1.weight"] & ~before
    assert int(new.sum()) > 0
    assert wanted[new].min() >= wanted[refused].max()
    assert bool((model[1].weight[new] == 0).all())


def test_recipes_survive_yaml():
    for options in ({}, {"growth": None}, {"within": True, "p_in": 0.5, "growth": "gradient"}):
        recipe = recipes.g2gnet(**options)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_convolution_correlates_channels():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, optimizer, recipes.g2gnet(groups=4, every=2), 10)
    for _ in range(3):
        model(torch.randn(8, 8, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(row["flips"] for row in sparsifier.history) > 0
