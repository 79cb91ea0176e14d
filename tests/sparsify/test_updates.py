"""Updates: hand examples with ties, conserved counts, exact schedules; one step against torch.nn.utils.prune."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from gossamer.errors import ConfigError, MaskError, NumericsError
from gossamer.maths.schedules import Constant, Cubic, Every, Linear
from gossamer.sparsify import Sparsifier, select
from gossamer.sparsify.allocation import Global, Uniform, budget
from gossamer.sparsify.context import Context
from gossamer.sparsify.patterns import NM, Block, Unstructured
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import Gradient, Magnitude
from gossamer.sparsify.updates import GrowTo, PruneGrow, PruneTo, SetTo
from gossamer.testing.recipes import network, train


def context(weight, mask, grad, pattern=Unstructured(), step=10):
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.weight.data = weight.clone()
    groups = select(model)
    return Context(
        model=model,
        groups=groups,
        patterns={"weight": pattern},
        masks={"weight": mask},
        weights={"weight": weight},
        statistics={"grad": {"weight": grad}},
        step=step,
        steps=100,
    )


W = torch.tensor([[5.0, 0.0, 1.0, 1.0], [0.0, 3.0, 1.0, 0.0], [0.0, 0.0, 4.0, 2.0]])
MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]]).bool()
GRAD = torch.tensor([[0.0, 9.0, 8.0, 0.1], [-7.0, 0.0, 0.0, 0.2], [0.3, 7.0, 0.0, 0.0]])


def test_prune_grow_by_hand():
    """7 survivors, rate 0.3: floor(2.1) = 2 go. Three tie at |w| = 1; the two of higher index go."""
    change = PruneGrow(Constant(0.3), Magnitude(), Gradient()).apply(context(W, MASK, GRAD))
    survivors = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]]).bool()
    assert torch.equal(change.survivors["weight"], survivors)
    # largest |g| outside the survivors: 9 at (0,1), then 7 tied at (1,0) and (2,1): the lower index
    grown = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(change.masks["weight"], survivors | grown)


def test_prune_grow_ceil_and_reverse():
    ctx = context(W, MASK, torch.where(W == 1.0, 100.0, 0.0))
    three = PruneGrow(Constant(0.3), Magnitude(), Gradient(), rounding="ceil").apply(ctx)
    assert torch.equal(three.masks["weight"], MASK)  # what was dropped has the largest gradient and returns
    assert torch.equal(three.survivors["weight"], MASK)  # ... with its value
    elsewhere = PruneGrow(Constant(0.3), Magnitude(), Gradient(), rounding="ceil").apply(context(W, MASK, GRAD))
    assert int(elsewhere.survivors["weight"].sum()) == 5  # (0, 2) was dropped and, with |g| = 8, returns
    never = PruneGrow(Constant(0.3), Magnitude(), Gradient(), allow_reverse=False).apply(ctx)
    assert not bool((never.masks["weight"] & MASK & ~never.survivors["weight"]).any())
    assert int(never.masks["weight"].sum()) == 7


def test_prune_to_prefers_active_zeros_to_inactive_ones():
    weight = torch.tensor([[0.0, 0.0, 2.0, 0.0]])
    mask = torch.tensor([[False, True, True, False]])
    ctx = context(weight, mask, weight)
    kept = PruneTo(Constant(0.5), when=Every(10)).apply(ctx).masks["weight"]
    assert torch.equal(kept, mask)


def test_grow_to_adds_only():
    ctx = context(W, MASK, GRAD)
    grown = GrowTo(Linear(0.75, 0.75), Gradient(), when=Every(10)).apply(ctx)
    assert int(grown.masks["weight"].sum()) == 9
    assert bool((grown.masks["weight"] >= MASK).all())
    assert bool(grown.masks["weight"][0, 1])


def test_blocks_move_whole():
    ctx = context(torch.rand(8, 4), Block(4, 1).project(torch.rand(8, 4), 16), torch.rand(8, 4), Block(4, 1))
    change = PruneGrow(Constant(0.5), Magnitude(), Gradient(), allow_reverse=False).apply(ctx)
    Block(4, 1).check(change.masks["weight"])
    assert int(change.masks["weight"].sum()) == 16
    assert int(change.survivors["weight"].sum()) == 8


def test_global_pruning_equals_torch():
    torch.manual_seed(0)
    model = network()
    theirs = copy.deepcopy(model)
    layers = [(m, "weight") for m in theirs if isinstance(m, nn.Linear)]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.6)
    recipe = Recipe("m", updates=(SetTo(Magnitude(), 0.4),))
    sp = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 10)
    for (module, _), mask in zip(layers, sp.masks.values(), strict=True):
        assert torch.equal(mask, module.weight_mask.bool())


def test_layerwise_pruning_equals_torch():
    torch.manual_seed(0)
    model = network()
    theirs = copy.deepcopy(model)
    recipe = Recipe("m", updates=(SetTo(Magnitude(), 0.5, Uniform()),))
    sp = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 10)
    for name, mask in sp.masks.items():
        module = theirs.get_submodule(name.rpartition(".")[0])
        torch_prune.l1_unstructured(module, "weight", amount=0.5)
        assert torch.equal(mask, module.weight_mask.bool())


def test_gmp_follows_its_schedule_exactly():
    recipe = Recipe("gmp", updates=(PruneTo(Cubic(1.0, 0.1), when=Every(3, stop=0.5)),))
    _, sp, _ = train(recipe, steps=60, watch=Sparsifier.check)
    total = sum(g.numel for g in sp.groups)
    rows = [row for row in sp.history if row["step"]]
    assert [row["step"] for row in rows] == list(range(3, 31, 3))
    for k, row in enumerate(rows, 1):
        expected = budget(0.1 + 0.9 * (1 - k / 10) ** 3, total)
        assert round(row["density"] * total) == expected
    assert rows[-1]["density"] == pytest.approx(0.1, abs=1 / total)


def test_a_layer_that_would_be_emptied_is_named():
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    recipe = Recipe("m", updates=(SetTo(Magnitude(), 0.1),))
    with pytest.raises(MaskError, match=r"3\.weight would be emptied"):
        Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 10)
    loose = Recipe("m", updates=(SetTo(Magnitude(), 0.1, Global(allow_empty=True)),))
    sp = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), loose, 10)
    assert not bool(sp.masks["3.weight"].any())


def test_bad_updates():
    with pytest.raises(ConfigError, match="final sparsity must not be below initial"):
        PruneTo(Linear(0.1, 0.5))
    with pytest.raises(ConfigError, match=r"density must lie in \(0, 1\]"):
        PruneTo(Linear(1.0, 0.0))
    with pytest.raises(ConfigError, match="rounding"):
        PruneGrow(rounding="up")
    with pytest.raises(ConfigError, match="fixed counts"):
        PruneGrow().apply(context(torch.rand(4, 8), NM(2, 4).project(torch.rand(4, 8)), torch.rand(4, 8), NM(2, 4)))
    bad = GRAD.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="grow score of weight"):
        PruneGrow(Constant(0.3), Magnitude(), Gradient()).apply(context(W, MASK, bad))
    ctx = context(W, MASK, GRAD)
    ctx.statistics = {}
    with pytest.raises(ConfigError, match="weight has no 'grad' at step 10"):
        PruneGrow(Constant(0.3), Magnitude(), Gradient()).apply(ctx)
