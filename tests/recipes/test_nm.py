"""N:M recipes: exact updates of pruned weights, per-layer numbers, logs, real networks, and what is refused."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.models import build
from gossamer.recipes.nm import FlipLog, lambda_for
from gossamer.sparsify import Recipe, Select, Sparsifier, accounting
from gossamer.sparsify.estimators import SRSTE, master
from gossamer.sparsify.export import densify, export_bitmap, export_dense, to_semi_structured
from gossamer.sparsify.patterns import NM
from gossamer.testing.recipes import batch, network, train


def bind(model, recipe, steps=10, lr=0.1, momentum=0.0, kind=torch.optim.SGD):
    options = {"momentum": momentum} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr, **options)
    return Sparsifier(model, optimizer, recipe, steps), optimizer


def linear(values):
    layer = nn.Linear(len(values), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))
    return layer


# ---- masks


@pytest.mark.parametrize("seed", range(20))
def test_masks_are_the_best_of_all_choices(seed):
    torch.manual_seed(seed)
    n, m = [(1, 2), (2, 4), (1, 4), (3, 5), (2, 8)][seed % 5]
    w = torch.randint(-3, 4, (4, 3 * m)).float() if seed % 2 else torch.randn(4, 3 * m)  # integers: ties and zeros
    mask = NM(n, m).project(w.abs())
    for group, kept in zip(w.abs().reshape(-1, m), mask.reshape(-1, m), strict=True):
        best = max(itertools.combinations(range(m), n), key=lambda c: (float(group[list(c)].sum()), [-i for i in c]))
        assert kept.nonzero().flatten().tolist() == sorted(best)


def test_layouts_agree_on_1x1_and_differ_on_3x3():
    for side, agree in ((1, True), (3, False)):
        w = torch.randn(8, 8, side, side).abs()
        masks = [NM(2, 4, layout).project(w) for layout in ("channels_last", "oihw_flat")]
        assert torch.equal(*masks) is agree
    assert torch.equal(masks[0], NM(2, 4).project(w.transpose(0, 1).contiguous().transpose(0, 1)))


def test_masks_equal_those_of_torch_ao():
    from torch.ao.pruning import WeightNormSparsifier

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    wanted = NM(2, 4).project(model[0].weight.detach().abs())
    peer = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    peer.prepare(model, [{"tensor_fqn": "0.weight"}])
    peer.step()
    assert torch.equal(model[0].parametrizations.weight[0].mask.bool(), wanted)


def test_divergence_is_a_distance():
    a, b, c = ({"w": NM(2, 4).project(torch.rand(8, 16))} for _ in range(3))
    other = {"w": ~a["w"]}
    assert accounting.sad(a, a) == 0
    assert accounting.sad(a, other) == 128
    assert accounting.sad(a, b) == accounting.sad(b, a)
    assert accounting.sad(a, c) <= accounting.sad(a, b) + accounting.sad(b, c)


# ---- updates


def test_the_gradient_is_the_straight_one_plus_the_pull():
    layer = linear([3.0, -0.1, 0.2, 2.0])
    recipe = recipes.sr_ste(2, 4, lam=0.25)
    sparsifier, optimizer = bind(layer, recipe)
    x = torch.tensor([[0.3, -0.7, 1.1, 0.4]], dtype=torch.float64)
    layer(x).sum().backward()
    w = master(layer, "weight")
    assert torch.equal(w.grad, x)
    before = w.detach().clone()
    sparsifier.after_backward()
    pruned = torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(w.grad, x + 0.25 * (pruned * before))
    optimizer.step()
    assert torch.equal(w.detach(), before - 0.1 * (x + 0.25 * (pruned * before)))


@pytest.mark.parametrize(
    ("decoupled", "kind"), [(False, torch.optim.SGD), (True, torch.optim.SGD), (True, torch.optim.Adam)]
)
def test_a_pruned_weight_without_gradient_decays_geometrically(decoupled, kind):
    layer = linear([4.0, 0.5, -0.25, 3.0])
    sparsifier, optimizer = bind(layer, recipes.sr_ste(2, 4, lam=0.2, decoupled=decoupled), steps=50, kind=kind)
    for _ in range(50):
        (0.0 * layer(torch.ones(1, 4, dtype=torch.float64)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    w = master(layer, "weight").detach()[0]
    assert float(w[1]) == pytest.approx(0.5 * (1 - 0.1 * 0.2) ** 50, rel=1e-12)
    assert float(w[2]) == pytest.approx(-0.25 * (1 - 0.1 * 0.2) ** 50, rel=1e-12)
    assert (float(w[0]), float(w[3])) == (4.0, 3.0)
    assert sparsifier.density() == 0.5


def test_decay_with_momentum_follows_its_recursion():
    layer = linear([4.0, 0.5, -0.25, 3.0])
    _, optimizer = bind(layer, recipes.sr_ste(2, 4, lam=0.2), steps=30, momentum=0.9)
    w, v = 0.5, 0.0
    for _ in range(30):
        (0.0 * layer(torch.ones(1, 4, dtype=torch.float64)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        v = 0.9 * v + 0.2 * w
        w -= 0.1 * v
    assert master(layer, "weight")[0, 1].item() == pytest.approx(w, rel=1e-12)


def test_adam_normalises_a_coupled_pull_away():
    """Coupled, the pull of a weight without other gradients moves it by lr whatever lambda is."""
    ends = []
    for lam in (1e-3, 1e-1):
        layer = linear([4.0, 0.5, -0.25, 3.0])
        _, optimizer = bind(layer, recipes.sr_ste(2, 4, lam=lam), lr=1e-3, kind=torch.optim.Adam)
        (0.0 * layer(torch.ones(1, 4, dtype=torch.float64)).sum()).backward()
        optimizer.step()
        ends.append(master(layer, "weight")[0, 1].item())
    assert ends == pytest.approx([0.499, 0.499], abs=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_lambda_zero_is_ste_and_full_groups_are_dense(optimizer):
    for one, two in ((recipes.sr_ste(1, 4, 0.0), recipes.ste(1, 4)), (recipes.sr_ste(4, 4, 0.1), recipes.dense())):
        models = []
        for recipe in (one, two):
            model, sparsifier, _ = train(recipe, optimizer)
            sparsifier.finalize()
            models.append(model.state_dict())
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


def test_the_pull_lowers_flips():
    flips = {}
    for lam in (0.0, 0.3):
        logs = []
        _, sparsifier, _ = train(
            recipes.sr_ste(1, 4, lam), "sgd", watch=lambda sp, logs=logs: (logs or logs.append(FlipLog(sp)), logs[0]())
        )
        flips[lam] = logs[0].flips
        assert logs[0].flips == sum(row["flips"] for row in logs[0].rows) == sum(logs[0].layers.values())
        assert logs[0].rows[-1]["divergence"] <= logs[0].flips
        assert logs[0].total == sum(mask.numel() for mask in sparsifier.masks.values())
    assert 0 < flips[0.3] < flips[0.0]


def test_the_log_counts_what_the_history_counts():
    model = network()
    sparsifier, optimizer = bind(model, recipes.ste(1, 4), steps=12)
    log = FlipLog(sparsifier)
    for step in range(12):
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        log()
    assert log.flips == sum(row["flips"] for row in sparsifier.history) > 0


def test_refresh_and_freeze():
    seen = []
    recipe = recipes.ste(1, 4, refresh=4, freeze=0.5)
    _, sparsifier, _ = train(recipe, watch=lambda sp: seen.append({n: m.clone() for n, m in sp.masks.items()}))
    changed = [step + 2 for step, (a, b) in enumerate(itertools.pairwise(seen)) if accounting.sad(a, b)]
    assert changed
    assert set(changed) <= {4, 8, 12}
    sparsifier.check()
    first = Sparsifier(network(), torch.optim.SGD(network().parameters(), 0.1), recipes.ste(1, 4, refresh=8), 24)
    assert first.density() == 0.25  # masks exist from the first step on


def test_numbers_of_single_layers():
    recipe = recipes.sr_ste(2, 4, layers=(("0.*", (1, 8)), ("5.weight", (4, 4))), layout="oihw_flat")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    _, sparsifier, _ = train(recipe)
    assert [float(mask.float().mean()) for mask in sparsifier.masks.values()] == [0.125, 0.5, 1.0]
    sparsifier.check()
    asp = recipes.asp(2, 4, layers=(("3.*", (1, 16)),), tail="keep")
    _, sparsifier, _ = train(asp)
    assert [float(mask.float().mean()) for mask in sparsifier.masks.values()] == [0.5, 1 / 16, 0.5]


def test_lambda_for_shrinks_as_said():
    steps, lr, momentum = 1200, 0.1, 0.9
    rates = [lr * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
    lam = lambda_for(3.0, sum(rates), momentum)
    assert lam == pytest.approx(5e-3, rel=0.01)
    w, v = 1.0, 0.0
    for rate in rates:
        v = momentum * v + lam * w
        w -= rate * v
    assert math.log(w) == pytest.approx(-3.0, abs=0.1)


# ---- real networks


def networks():
    tokens = torch.randint(0, 32, (4, 8))
    return {
        "resnet-20": (build("resnet-20"), torch.randn(4, 3, 16, 16), Select(layers=("conv",), first_dense=True)),
        "vit-tiny": (
            build("vit-tiny", shape=(1, 12, 12), patch=3, width=32, depth=2),
            torch.randn(4, 1, 12, 12),
            Select(only=("blocks.*",)),
        ),
        "llama": (
            build("llama", shape=(8,), classes=32, width=32, depth=2, hidden=64),
            tokens,
            Select(exclude=("head*",)),
        ),
    }


@pytest.mark.parametrize("name", ["resnet-20", "vit-tiny", "llama"])
@pytest.mark.parametrize("make", [recipes.sr_ste, recipes.mdgf_exponential], ids=["sr_ste", "mdgf"])
def test_networks_train_and_end_legal(name, make):
    torch.manual_seed(0)
    model, x, select = networks()[name]
    sparsifier, optimizer = bind(model, make(2, 4, select=select), steps=4, lr=1e-3, kind=torch.optim.AdamW)
    losses = []
    for _ in range(4):
        logits = model(x)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.arange(logits.shape[:-1].numel()) % 4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    sparsifier.check()
    model.eval()
    wanted = model(x)
    copied = copy.deepcopy(model)
    sparsifier.finalize()
    assert torch.equal(model(x), wanted)
    assert torch.equal(copied(x), wanted)
    assert losses[-1] < losses[0]
    weights = dict(model.named_parameters())
    for group in sparsifier.groups:
        NM(2, 4).check(weights[group.name] != 0)


# ---- export


def two_four():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    sparsifier, _ = bind(model, recipes.ste(2, 4))
    return sparsifier.finalize(), sparsifier.entry_masks


def test_bitmaps_come_back_and_are_smaller():
    model, masks = two_four()
    stored = export_bitmap(model, masks)
    dense, back = export_dense(model, masks), densify(stored)
    assert back.keys() == dense.keys()
    assert all(torch.equal(back[name], dense[name]) for name in dense)
    held = sum(stored[f"0.weight.{part}"].nbytes for part in ("values", "bits"))
    assert held == 64 * 32 * 4 / 2 + 64 * 32 / 8


def test_what_stays_dense_is_named_and_unchanged():
    model, masks = two_four()
    x = torch.randn(3, 64)
    wanted = model(x)
    refused = to_semi_structured(model, masks)
    assert refused == dict.fromkeys(masks, "on cpu: 2:4 kernels need a CUDA device")
    assert torch.equal(model(x), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_semi_structured_products_on_cuda():
    model, masks = two_four()
    model = model.cuda().half()
    x = torch.randn(64, 64, device="cuda", dtype=torch.half)
    wanted = model(x)
    assert to_semi_structured(model, masks) == {}
    torch.testing.assert_close(model(x), wanted, rtol=1e-2, atol=1e-2)


# ---- bad input


@pytest.mark.parametrize("pair", [(5, 4), (0, 4), (1, 1), (2.0, 4), (True, 4)])
def test_impossible_numbers(pair):
    with pytest.raises(ConfigError, match=r"n in 1\.\.m"):
        recipes.ste(*pair)


def test_layers_that_do_not_divide_are_named():
    with pytest.raises(ShapeError, match=r"0\.weight: 2:5 does not divide 16 .* exclude the layer or set tail"):
        bind(network(), recipes.ste(2, 5))
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(ShapeError, match=r"0\.weight: 2:4 does not divide 1 "):
        bind(depthwise, recipes.ste())
    sparsifier, _ = bind(depthwise, recipes.ste(tail="keep"))
    assert sparsifier.density() == 1.0


def test_bad_lambdas_and_weights():
    with pytest.warns(UserWarning, match="pushes pruned weights up"):
        recipes.sr_ste(lam=-1e-3)
    with pytest.raises(ConfigError, match="finite lambda"):
        SRSTE(float("nan"))
    with pytest.raises(ConfigError, match="overshoot"):
        bind(network(), recipes.sr_ste(lam=20.0))
    with pytest.warns(UserWarning, match=r"more than 0\.1"):
        bind(network(), recipes.sr_ste(lam=2.0))
    model = network()
    with torch.no_grad():
        model[3].weight[1, 2] = float("nan")
    with pytest.raises(NumericsError, match=r"3\.weight has NaN"):
        bind(model, recipes.sr_ste())
    with pytest.raises(ConfigError, match="complex64; masks act on real"):
        bind(nn.Linear(4, 4, dtype=torch.complex64), recipes.ste())
    with pytest.raises(ConfigError, match="efolds=0"):
        lambda_for(0, 1.0)
