"""The Sparsifier in real loops: identities between methods, order of operations, AMP, compile, accumulation, DDP."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from gossamer import recipes
from gossamer.errors import CheckpointError, ConfigError, MaskError, NumericsError
from gossamer.maths.schedules import Constant, Cosine, Every
from gossamer.sparsify import Recipe, Select, Sparsifier
from gossamer.sparsify.allocation import ERK
from gossamer.sparsify.estimators import SRSTE, STE, Projected, Scored, SoftMask
from gossamer.sparsify.patterns import NM, Block
from gossamer.sparsify.regularizers import BNL1, L1, L2
from gossamer.sparsify.scores import Gradient, GradientEMA, Magnitude, Random
from gossamer.sparsify.updates import PruneGrow, PruneTo, SetTo
from gossamer.sparsify.weight_ops import HardZero, Shrink, SoftThreshold
from gossamer.testing.recipes import batch, check_recipe, network, train


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- section 5 of the algebra


def test_granet_with_equal_sparsities_is_rigl():
    when = Every(4)
    start = SetTo(Random(), 0.3, ERK())
    move = PruneGrow(Cosine(0.5, 0.005), Magnitude(), Gradient(), when, rounding="ceil")
    rigl = Recipe("rigl", updates=(start, move))
    granet = recipes.granet(sparsity=0.7, initial=0.7, every=4)
    one, sp1, _ = train(granet)
    two, sp2, _ = train(rigl)
    assert same(one, two)
    assert all(torch.equal(sp1.masks[n], sp2.masks[n]) for n in sp1.masks)


def test_granet_without_growth_from_dense_is_gmp():
    still = recipes.granet(sparsity=0.8, every=4)
    prune, grow = still.updates
    still = still.replace(updates=(prune, PruneGrow(Constant(0.0), grow=grow.grow, when=grow.when)))
    assert same(train(still)[0], train(recipes.gmp(sparsity=0.8, every=4))[0])


def test_movement_at_rate_zero_is_static():
    static = recipes.random(sparsity=0.7)
    still = static.replace(updates=(*static.updates, PruneGrow(Constant(0.0), grow=Gradient(), when=Every(4))))
    assert same(train(still)[0], train(static)[0])


def test_sr_ste_with_lambda_zero_is_ste():
    assert same(train(recipes.sr_ste(2, 4, lam=0.0))[0], train(recipes.ste(2, 4))[0])


def test_soft_masks_end_in_dense_and_ste():
    soft = Recipe("s", pattern=NM(2, 4), family=SoftMask(Constant(1.0)), updates=(SetTo(when=Every(1)),))
    _, sp, _ = train(soft)
    dense, _, _ = train(recipes.dense())
    for name, p in dense.named_parameters():
        master = dict(sp.model.named_parameters()).get(name)
        if master is None:
            path, attr = name.rsplit(".", 1)
            master = sp.model.get_submodule(path).parametrizations[attr].original
        assert torch.equal(master, p)
    hard = soft.replace(family=SoftMask(Constant(0.0)))
    one, sp1, _ = train(hard)
    two, sp2, _ = train(recipes.ste(2, 4))
    sp1.finalize()
    sp2.finalize()
    assert same(one, two)


def test_n_equal_m_is_dense_bit_for_bit():
    full, sp, _ = train(recipes.sr_ste(4, 4))
    sp.finalize()
    assert same(full, train(recipes.dense())[0])


def test_shrink_limits():
    """alpha = 0 is iterative hard thresholding; alpha = 1 is dense training until the freeze."""
    base = Recipe("iss", updates=(SetTo(Magnitude(), 0.3, ERK(), when=Every(1)),), family=Projected(False, freeze=0.5))
    hard = train(base.replace(weight_ops=(HardZero(),)))[0]
    assert same(hard, train(base.replace(weight_ops=(Shrink(0.0),)))[0])
    dense_part, _, _ = train(base.replace(weight_ops=(Shrink(1.0),)), stop=11)
    assert same(dense_part, train(recipes.dense(), stop=11)[0])
    check_recipe(base.replace(weight_ops=(Shrink(0.95),)), optimizers=["nesterov", "adam"])


def test_half_life():
    assert Shrink.half_life(10).alpha ** 10 == pytest.approx(0.5)


# ---- every composition trains to the same bits from YAML and resumes exactly


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.rigl(0.8, every=4).replace(pattern=Block(4, 1), select=Select(exclude=("5.*",))),
        recipes.granet(0.8, every=4, growth=GradientEMA()),
        recipes.rigl(0.8, every=4).replace(layers=(("0.*", Block(2, 2)),)),
        recipes.random(0.8, scale_init=True),
        Recipe("scored", family=Scored(0.3)),
        Recipe("scores", family=Scored(0.3, train="scores", init="random")),
        Recipe("slim", regularizers=(BNL1(1e-3), L1(1e-4, "kept"), L2(1e-3, "pruned"))),
        Recipe("prox", weight_ops=(SoftThreshold(1e-4),), updates=(SetTo(Magnitude(), 0.5),)),
        recipes.sr_ste(2, 4, decoupled=True),
    ],
    ids=lambda r: r.name,
)
def test_compositions(recipe):
    check_recipe(recipe, optimizers=["nesterov", "adamw-foreach"])


# ---- loops


@pytest.mark.parametrize("recipe", [recipes.sr_ste(), recipes.rigl(0.8, every=2)], ids=lambda r: r.name)
def test_moving_the_model_after_binding_changes_nothing(recipe):
    """`model.to` replaces buffers even from cpu to cpu:0; updates must reach the ones in use."""

    def move(sp):
        if sp.step == 3:
            sp.model.to("cpu:0")

    one, sp1, _ = train(recipe, watch=move)
    two, sp2, _ = train(recipe)
    sp1.finalize()
    sp2.finalize()
    assert same(one, two)


def test_accumulation_equals_a_big_batch():
    recipe = recipes.sr_ste(2, 4, lam=1e-2)
    models = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).double()
        opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        sp = Sparsifier(model, opt, recipe, 10)
        for step in range(10):
            x, y = batch(step)
            for xs, ys in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(xs), ys) / parts).backward()
            opt.step()
            opt.zero_grad()
        sp.finalize()
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_clip_sees_masked_gradients():
    torch.manual_seed(0)
    model = network()
    opt = torch.optim.SGD(model.parameters(), 1.0)
    sp = Sparsifier(model, opt, recipes.random(0.9), 10)
    before = copy.deepcopy(model)
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    sp.after_backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    opt.step()
    moved = sum(
        float((a - b).detach().square().sum()) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-3)


def test_grad_scaler_skip_and_fused():
    for fused in (False, True):
        torch.manual_seed(0)
        model = network()
        opt = torch.optim.Adam(model.parameters(), 1e-2, fused=fused)
        sp = Sparsifier(model, opt, recipes.rigl(0.8, every=1), 8)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for step in range(4):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y) * (float("inf") if step == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
            sp.after_backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
            sp.check()
        assert sp.step == 3  # the overflowing step did not count


def test_fused_under_grad_scaler_needs_the_call():
    torch.manual_seed(0)
    model = network()
    opt = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    Sparsifier(model, opt, recipes.random(0.8), 8)
    scaler = torch.amp.GradScaler("cpu")
    x, y = batch(0)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    with pytest.raises(ConfigError, match="after_backward"):
        scaler.step(opt)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")  # torch's own tracer
@pytest.mark.parametrize("name", ["rigl", "sr_ste"])
def test_compile_without_breaks_or_recompilation(name):
    import torch._dynamo as dynamo

    dynamo.reset()
    recipe = recipes.rigl(0.8, every=2) if name == "rigl" else recipes.sr_ste()
    torch.manual_seed(0)
    model = network()
    eager = copy.deepcopy(model)
    for net, wrap in ((eager, False), (model, True)):
        opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        sp = Sparsifier(net, opt, recipe, 8)
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if wrap else net
        for step in range(8):
            x, y = batch(step)
            F.cross_entropy(run(x), y).backward()
            opt.step()
            opt.zero_grad()
            if wrap and step == 0:
                frames = dynamo.utils.counters["stats"]["unique_graphs"]
        sp.finalize()
    assert dynamo.utils.counters["stats"]["unique_graphs"] == frames
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_attention_blocks_and_tied_weights():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    select = Select(layers=("attention",), split_attention=True)
    opt = torch.optim.SGD(attention.parameters(), 0.1)
    sp = Sparsifier(attention, opt, recipes.random(0.5).replace(select=select), 10)
    assert [g.name for g in sp.groups] == ["in_proj_weight.q", "in_proj_weight.k", "in_proj_weight.v"]
    whole = sp.entry_masks["in_proj_weight"]
    assert torch.equal(whole[8:16], sp.masks["in_proj_weight.k"])
    assert attention.in_proj_weight.detach()[~whole].count_nonzero() == 0

    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    sp = Sparsifier(tied, torch.optim.SGD(tied.parameters(), 0.1), recipes.random(0.5), 10)
    assert list(sp.masks) == ["0.weight"]


def test_tied_weights_given_two_patterns_are_refused():
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    recipe = recipes.random(0.5).replace(layers=(("1.weight", Block(4, 1)),))
    with pytest.raises(MaskError, match=r"0\.weight and 1\.weight are one tied weight but are given two patterns"):
        Sparsifier(tied, torch.optim.SGD(tied.parameters(), 0.1), recipe, 10)


def test_momentum_is_masked_with_every_update():
    """An unmasked buffer would bring pruned weights back for about ten steps."""

    def watch(sp):
        for name, mask in sp.entry_masks.items():
            state = sp.optimizer.state[dict(sp.model.named_parameters())[name]]
            for value in state.values():
                if torch.is_tensor(value) and value.shape == mask.shape:
                    assert value[~mask].count_nonzero() == 0

    for optimizer in ("nesterov", "adam", "rmsprop"):
        train(recipes.granet(0.8, every=4), optimizer, watch=watch)


def test_grown_weights_start_as_asked():
    recipe = recipes.rigl(0.8, every=4)
    start, move = recipe.updates
    for init in ("random", "grad_step"):
        changed = recipe.replace(updates=(start, PruneGrow(move.rate, grow=move.grow, when=move.when, init=init)))
        _, sp, _ = train(changed, stop=4)
        kept = sum(int(m.sum()) for m in sp.masks.values())
        parameters = dict(sp.model.named_parameters())
        nonzero = sum(int(parameters[n].count_nonzero()) for n in sp.masks)
        assert nonzero >= kept - 1  # a gradient may be exactly 0
        sp.check()
    _, sp, _ = train(recipe, stop=4)
    parameters = dict(sp.model.named_parameters())
    assert sum(int(parameters[n].count_nonzero()) for n in sp.masks) < kept


def test_enforce_after_foreign_edits():
    model, sp, _ = train(recipes.random(0.8))
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(MaskError, match=r"masked weights of 0\.weight"):
        sp.check()
    sp.enforce()
    sp.check()


def test_dense_gradients_are_asked_for_only_when_due():
    asked = []
    train(recipes.rigl(0.8, every=8), watch=lambda sp: asked.append(sp.wants_dense_gradient()))
    assert [i + 2 for i, due in enumerate(asked) if due] == [8, 16]  # stop = 0.75 of 24
    asked.clear()
    train(recipes.set_(0.8, every=8), watch=lambda sp: asked.append(sp.wants_dense_gradient()))
    assert not any(asked)


# ---- bad input


def test_refusals():
    model = network()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match="steps"):
        Sparsifier(model, opt, recipes.rigl(), 0)
    with pytest.raises(ConfigError, match="no mask update would happen"):
        Sparsifier(model, opt, recipes.rigl(every=100), 20)
    with pytest.raises(ConfigError, match=r"did you mean '0\.weight'"):
        Sparsifier(model, opt, recipes.random().replace(select=Select(only=("0.weigth",))), 20)
    with pytest.raises(ConfigError, match="below initial"):
        recipes.granet(sparsity=0.3, initial=0.5)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"0\.weight has NaN"):
        Sparsifier(model, opt, recipes.random(), 20)


def test_missing_gradient_is_named():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    opt = torch.optim.SGD(model.parameters(), 0.1)
    Sparsifier(model, opt, recipes.rigl(0.5, every=1), 10)
    model["a"](torch.ones(2, 8)).sum().backward()
    with pytest.raises(ConfigError, match=r"b\.weight has no 'grad'"):
        opt.step()


def test_closures_are_refused():
    model = network()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    Sparsifier(model, opt, recipes.random(), 20)
    with pytest.raises(ConfigError, match="closure"):
        opt.step(lambda: torch.tensor(0.0))


def test_state_of_another_run_is_refused():
    _, sp, _ = train(recipes.rigl(0.8, every=4))
    state = sp.state_dict()
    _, other, _ = train(recipes.set_(0.8, every=4))
    with pytest.raises(CheckpointError, match="recipe"):
        other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 99"):
        sp.load_state_dict({**state, "version": 99})
    wrong = {**state, "masks": {k + "x": v for k, v in state["masks"].items()}}
    with pytest.raises(CheckpointError, match="another model"):
        sp.load_state_dict(wrong)


def test_already_pruned_by_torch():
    model = network()
    for m in model:
        if isinstance(m, nn.Linear):
            torch_prune.l1_unstructured(m, "weight", 0.5)
    with pytest.raises(ConfigError, match=r"torch\.nn\.utils\.prune"):
        Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipes.random(), 20)


def test_prune_to_window_reaches_its_target_with_any_interval():
    for every in (5, 7, 11):
        recipe = Recipe("g", updates=(PruneTo(Cosine(1.0, 0.2), when=Every(every, stop=0.6)),))
        _, sp, _ = train(recipe, steps=40)
        assert sp.density() == pytest.approx(0.2, abs=1e-3)


def test_ste_families_keep_masters():
    for family in (STE(), SRSTE(1e-2)):
        model, sp, _ = train(Recipe("n", pattern=NM(1, 4), family=family, updates=(SetTo(when=Every(1)),)))
        master = model[0].parametrizations.weight.original
        assert master.count_nonzero() == master.numel()
        sp.finalize()
        assert int(model[0].weight.count_nonzero()) == master.numel() // 4
