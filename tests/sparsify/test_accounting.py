"""Counting: parameters, FLOPs, bytes and churn, against hand counts and torch's own counters."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gossamer import recipes
from gossamer.errors import ConfigError, ShapeError
from gossamer.models import build
from gossamer.sparsify import Recipe, Select, Sparsifier, accounting
from gossamer.sparsify.accounting import flops, memory, sparsity, training_flops
from gossamer.sparsify.estimators import STE, Projected, SoftMask
from gossamer.sparsify.gates import Gate
from gossamer.sparsify.weight_ops import HardZero


def counted_by_torch(model, *inputs):
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def half(model, names):
    """Masks that drop the first half of every named weight, and zeros in these places."""
    masks = {}
    for name in names:
        weight = model.get_parameter(name)
        mask = torch.ones(weight.numel(), dtype=torch.bool)
        mask[: weight.numel() // 2] = False
        masks[name] = mask.view_as(weight)
        weight.data.mul_(masks[name])
    return masks


# --------------------------------------------------------------------------- sparsity


def test_the_three_scopes_of_a_hand_made_model():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2), Gate(2))
    masks = half(model, ["1.weight"])
    triple = accounting.sparsity_triple(model, masks)
    assert (triple["prunable"].total, triple["prunable"].kept) == (24 + 12 + 2, 12 + 12 + 2)
    assert (triple["weights"].total, triple["weights"].kept) == (20 + 38, 20 + 26)
    assert (triple["all"].total, triple["all"].kept) == (58 + 6 + 12 + 2, 46 + 6 + 12 + 2)
    assert triple["all"].sparsity == 12 / 78
    assert sparsity(model, masks, "weights") == triple["weights"]
    rows = {row.name: row for row in accounting.layer_table(model, masks)}
    assert rows["1.weight"].masked
    assert rows["1.weight"].density == 0.5
    assert rows["2.weight"].scope == "all"
    assert rows["0.weight"].scope == "weights"


def test_without_masks_the_values_are_counted():
    model = nn.Linear(4, 4)
    model.weight.data[0] = 0
    assert sparsity(model).kept == 12
    assert sparsity(model, {}).kept == 16


def test_selection_narrows_the_prunable_scope():
    model = build("mlp", shape=(8,), hidden=(6,), classes=3)
    assert sparsity(model, select=Select(last_dense=True)).total == 48
    assert sparsity(model, select=Select(exclude=("fc1*",))).total == 18
    assert sparsity(model, select=Select(only=("nothing",))).total == 0


def test_tied_weights_count_once_and_take_the_mask_of_either_name():
    model = build("llama", classes=16, width=8, depth=1, heads=2, tied=True)
    untied = build("llama", classes=16, width=8, depth=1, heads=2, tied=False)
    assert sparsity(untied, scope="all").total - sparsity(model, scope="all").total == 16 * 8
    masks = {"head.weight": torch.arange(128).view(16, 8) % 4 == 0}
    kept = sparsity(model, masks, "all")
    assert kept.total - kept.kept == 96


@pytest.mark.parametrize("recipe", [recipes.ste(), recipes.magnitude(0.75)], ids=lambda r: r.name)
def test_a_sparsifier_is_counted_while_it_runs(recipe):
    model = build("mlp", shape=(8,), hidden=(8,), classes=4)
    total = sparsity(model, scope="all").total
    sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 10)
    count = sparsity(model, sparsifier.entry_masks)
    assert count.density == sparsifier.density()
    assert sparsity(model) == count
    assert sparsity(model, scope="all").total == total
    assert flops(model, torch.randn(2, 8), sparsifier.entry_masks).ratio == sparsifier.density()
    assert accounting.disagreements(model, sparsifier.entry_masks) == []


def test_disagreements_name_leaks_and_grown_zeros():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    masks = half(model, ["0.weight", "1.weight"])
    model[0].weight.data[0, 0] = 1.0
    model[1].weight.data[3, 3] = 0.0
    leak, grown = accounting.disagreements(model, masks)
    assert (leak.name, leak.kept, leak.nonzero, leak.leaked) == ("0.weight", 8, 9, 1)
    assert (grown.name, grown.kept, grown.nonzero, grown.leaked) == ("1.weight", 8, 7, 0)


def test_bad_masks_and_scopes_are_named():
    model = build("mlp", shape=(8,), hidden=(6,), classes=3)
    with pytest.raises(ConfigError, match=r"fc1\.weigt.*fc1\.weight"):
        sparsity(model, {"fc1.weigt": torch.ones(6, 8, dtype=torch.bool)})
    with pytest.raises(ShapeError, match=r"fc1\.weight has shape \(8, 6\)"):
        sparsity(model, {"fc1.weight": torch.ones(8, 6, dtype=torch.bool)})
    with pytest.raises(ConfigError, match=r"'weigths'.*weights"):
        sparsity(model, scope="weigths")
    with pytest.raises(ConfigError, match="layer kind"):
        sparsity(model, select=Select(layers=("convolution",)))


# --------------------------------------------------------------------------- FLOPs


@given(
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1)]),
    transposed=st.booleans(),
)
def test_convolutions_agree_with_torch(groups, stride, dilation, padding, kernel, transposed):
    if transposed:
        padding = 0
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(4, 8, kernel, stride, padding, groups=groups, dilation=dilation)
    x = torch.randn(3, 4, 9, 7)
    assert flops(conv, x).dense * 3 == counted_by_torch(conv, x)


def test_convolution_by_hand():
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    assert flops(conv, torch.randn(5, 4, 8, 8)).dense == 2 * 3 * 3 * (4 // 2) * 8 * 4 * 4
    assert flops(nn.Conv1d(2, 3, 5), torch.randn(1, 2, 9)).macs == 5 * 2 * 3 * 5


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_linear_over_any_leading_dimensions(shape):
    layer, x = nn.Linear(6, 4), torch.randn(shape)
    assert flops(layer, x).dense == 2 * 6 * 4 * x[0].numel() // 6
    assert flops(layer, x).dense * 2 == counted_by_torch(layer, x)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet-5", (1, 28, 28)),
        ("resnet-20", (3, 32, 32)),
        ("mobilenet-digits", (1, 16, 16)),
        ("efficientnet-b0", (3, 32, 32)),
        ("unet", (1, 16, 16)),
    ],
)
def test_dense_networks_agree_with_torch(name, shape):
    model, x = build(name), torch.randn(2, *shape)
    counts = flops(model, x)
    assert counts.dense * 2 == counted_by_torch(model, x)
    assert {layer.name for layer in counts.layers} <= set(dict(model.named_parameters()))


def test_resnet50_has_the_published_size():
    model = build("resnet-50")
    counts = flops(model, torch.zeros(1, 3, 224, 224))
    assert sparsity(model, scope="all").total == 25_557_032
    assert round(counts.macs / 1e9, 2) == 4.09


def test_attention_products_by_hand():
    """ViT: queries with keys and scores with values, twice d multiply-accumulates for each pair of tokens."""
    model, x = build("vit-tiny", shape=(3, 8, 8), depth=2, width=16, heads=2), torch.randn(3, 3, 8, 8)
    plain, full = flops(model, x), flops(model, x, attention=True)
    tokens = 5
    assert full.dense - plain.dense == 2 * (2 * 2 * tokens * tokens * 16)
    assert full.layers[[r.name for r in full.layers].index("products")].density == 1.0


def test_fused_attention_and_recurrence_are_seen_through():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    counts = {row.name: row.dense for row in flops(encoder, torch.randn(2, 5, 16)).layers}
    assert counts["self_attn.in_proj_weight"] == 2 * 5 * 16 * 48
    assert counts["self_attn.out_proj.weight"] == 2 * 5 * 16 * 16
    assert torch.backends.mha.get_fastpath_enabled()
    counts = {row.name: row.dense for row in flops(nn.LSTM(8, 16, batch_first=True), torch.randn(2, 5, 8)).layers}
    assert counts == {"weight_ih_l0": 2 * 5 * 8 * 64, "weight_hh_l0": 2 * 5 * 16 * 64}


def test_derived_weights_keep_their_name():
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))
            self.register_buffer("scale", torch.ones(6))

        def forward(self, x):
            return F.linear(x + x.mean(), (self.weight - self.weight.mean()) * self.scale) @ self.weight.T[:4, :4]

    (row,) = flops(Standardised(), torch.randn(2, 6)).layers
    assert (row.name, row.dense) == ("weight", 2 * 4 * 6 + 2 * 4 * 4)


def test_a_weight_used_twice_counts_twice():
    model = build("llama", shape=(8,), classes=16, width=8, depth=1, heads=2, tied=True)
    rows = {row.name: row.dense for row in flops(model, torch.zeros(1, 8, dtype=torch.long)).layers}
    assert rows["embed.weight"] == 2 * 8 * 8 * 16  # the look-up is free, the output layer is not
    layer = nn.Linear(4, 4)
    assert flops(nn.Sequential(layer, layer), torch.randn(1, 4)).dense == 2 * 2 * 16


def test_sparse_flops_are_weighted_by_density():
    model, x = build("mobilenet-digits"), torch.randn(2, 1, 16, 16)
    dense = flops(model, x)
    masks = half(model, ["blocks.2.pointwise.conv.weight", "head.fc.weight"])
    counts = flops(model, x, masks)
    saved = sum(row.dense for row in counts.layers if row.name in masks) / 2
    assert counts.dense == dense.dense
    assert counts.sparse == dense.dense - saved
    assert flops(model, x).sparse == counts.sparse
    assert counts.at(dict.fromkeys(masks, 0.5)) == counts.sparse


def test_counting_leaves_no_trace():
    model = nn.Sequential(build("mobilenet-digits"), nn.Dropout(0.5))
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    flops(model, torch.randn(2, 1, 16, 16, generator=torch.Generator()))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state())


def test_erk_costs_more_flops_than_uniform_at_equal_sparsity():
    x = torch.randn(1, 3, 32, 32)
    ratios = {}
    for allocation in ("erk", "uniform"):
        model = build("resnet-20")
        recipe = recipes.random(0.9, allocation)
        sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 10)
        ratios[allocation] = flops(model, x, sparsifier.entry_masks).ratio
    assert ratios["uniform"] == pytest.approx(0.1, abs=2e-3)
    assert ratios["erk"] / ratios["uniform"] > 1.5


def test_flops_need_a_batch():
    with pytest.raises(ConfigError, match="example input"):
        flops(nn.Linear(2, 2), "x")
    with pytest.raises(ConfigError, match="per sample"):
        flops(nn.Linear(2, 2), torch.randn(0, 2))
    assert flops(nn.Linear(2, 2), torch.randn(6, 2), samples=3).dense == 2 * 8


# --------------------------------------------------------------------------- training FLOPs


COUNTS = accounting.Flops((accounting.LayerFlops("a", 60.0), accounting.LayerFlops("b", 40.0)))


def row(step, density, dense=0):
    return {"step": step, "density": density, "layers": {"a": density}, "dense_gradient_steps": dense}


F_S = 0.1 * 60 + 40


def test_dense_and_static_training():
    dense = training_flops(COUNTS, [{**row(0, 1.0), "layers": {}}], 10)
    assert dense.theoretical == dense.executed == dense.dense == 3 * 100 * 10
    static = training_flops(COUNTS, [row(0, 0.1), row(10, 0.1)])
    assert static.theoretical == pytest.approx(3 * F_S * 10)
    assert static.executed == static.dense == 3000
    assert static.peak_density == 0.1
    assert static.dense_gradient_steps == 0


def test_rigl_agrees_with_its_formula():
    history = [row(5 * i, 0.1, i) for i in range(5)]
    cost = training_flops(COUNTS, history, 20)
    assert cost.theoretical == pytest.approx(20 * accounting.rigl_step_flops(F_S, 100, 4))
    assert cost.dense_gradient_steps == 4


def test_limits_of_the_rigl_formula():
    assert accounting.rigl_step_flops(30.0, 100.0, 1e12) == pytest.approx(3 * 30)
    assert accounting.rigl_step_flops(100.0, 100.0, 7) == 3 * 100


def test_gradual_pruning_follows_the_history():
    cost = training_flops(COUNTS, [row(0, 1.0), row(10, 0.5), row(20, 0.1)], 40)
    expected = 3 * (10 * 100 + 10 * (30 + 40) + 20 * F_S)
    assert cost.theoretical == pytest.approx(expected)
    assert cost.peak_density == 1.0


@pytest.mark.parametrize(
    ("recipe", "per_step"),
    [
        (Recipe(family=STE()), 2 * F_S + 100),
        (Recipe(family=SoftMask()), 2 * F_S + 100),
        (recipes.sr_ste(), 2 * F_S + 100),
        (Recipe(family=Projected(mask_grad=False)), 300),
        (Recipe(family=Projected(mask_grad=False), weight_ops=(HardZero(),)), 2 * F_S + 100),
    ],
)
def test_masters_that_stay_dense_cost_dense_gradients(recipe, per_step):
    cost = training_flops(COUNTS, [row(0, 0.1), row(10, 0.1)], recipe=recipe)
    assert cost.theoretical == pytest.approx(10 * per_step)
    assert cost.peak_density == 1.0


def test_scores_before_training_cost_dense_batches():
    history = [row(0, 0.1), row(10, 0.1)]
    plain = training_flops(COUNTS, history).theoretical
    assert training_flops(COUNTS, history, recipe=recipes.snip(batches=4)).theoretical - plain == 4 * 300
    assert training_flops(COUNTS, history, recipe=recipes.synflow(rounds=7)).theoretical - plain == 7 * 300
    assert training_flops(COUNTS, history, recipe=recipes.magnitude()).theoretical == plain


def test_a_real_run_is_counted_from_its_history():
    model = build("mlp", shape=(12,), hidden=(16,), classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, recipes.rigl(0.5, every=5), 40)
    counts = flops(model, torch.randn(2, 12), sparsifier.entry_masks)
    for _ in range(40):
        F.cross_entropy(model(torch.randn(8, 12)), torch.randint(0, 4, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finalize()
    cost = training_flops(counts, sparsifier.history, 40, sparsifier.recipe)
    updates = sparsifier.dense_gradient_steps
    assert 0 < updates == cost.dense_gradient_steps
    f_s, f_d = counts.sparse, counts.dense
    assert cost.theoretical == pytest.approx(3 * f_s * (40 - updates) + (2 * f_s + f_d) * updates)
    assert cost.theoretical < cost.executed


def test_rounds_of_a_ticket_add_up():
    first = training_flops(COUNTS, [row(0, 1.0)], 10)
    second = training_flops(COUNTS, [row(0, 0.1)], 20)
    both = first + second
    assert both.theoretical == pytest.approx(3 * 100 * 10 + 3 * F_S * 20)
    assert both.peak_density == 1.0
    assert both.relative == pytest.approx(both.theoretical / 9000)


@pytest.mark.parametrize(("history", "steps"), [([], 5), ([row(5, 1), row(0, 1)], 9), ([row(8, 1)], 5)])
def test_histories_that_make_no_sense(history, steps):
    with pytest.raises(ConfigError, match="histor"):
        training_flops(COUNTS, history, steps)


# --------------------------------------------------------------------------- bytes


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_bytes_of_csr_equal_torch():
    model = nn.Linear(24, 10, bias=False)
    masks = half(model, ["weight"])
    csr = model.weight.detach().to_sparse_csr()
    parts = (csr.values(), csr.crow_indices().int(), csr.col_indices().int())
    assert memory(model, masks, "csr").total == sum(t.numel() * t.element_size() for t in parts)


def test_bytes_of_bitmap_equal_packed_bits():
    from gossamer.kernels.bitmap import pack

    model = nn.Linear(21, 10, bias=False)
    masks = half(model, ["weight"])
    assert memory(model, masks, "bitmap").total == 4 * 105 + pack(masks["weight"]).numel()


def test_bytes_of_two_four():
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 3, bias=False))
    masks = {"0.weight": (torch.arange(16) % 4 < 2).expand(8, 16), "1.weight": torch.rand(3, 8) < 0.5}
    result = memory(model, masks, "2:4")
    assert result.layers == {"0.weight": 64 * 4 + 64 * 2 // 8, "1.weight": 24 * 4}


def test_bytes_of_safetensors_equal_the_file():
    model = build("mobilenet-digits").half()
    assert memory(model, format="safetensors").total == len(save(model.state_dict()))
    assert memory(nn.Linear(3, 2), format="safetensors").total == len(save(nn.Linear(3, 2).state_dict()))


def test_dense_bytes_count_buffers_and_halve_with_the_type():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    assert memory(model).total == 4 * (8 + 2 + 2 + 2) + 4 * 4 + 8
    assert memory(nn.Linear(4, 2, bias=False).bfloat16()).total == 16
    with pytest.raises(ConfigError, match="storage format 'cs'"):
        memory(model, format="cs")


def test_without_masks_zeros_decide_and_dense_tensors_stay_dense():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[0].weight.data[:4] = 0
    assert memory(model, format="bitmap").layers == {"0.weight": 32 * 4 + 8, "1.weight": 64 * 4}


def test_optimizer_state():
    model = nn.Linear(8, 4, bias=False)
    masks = half(model, ["weight"])
    optimizer = torch.optim.Adam(model.named_parameters())
    assert accounting.optimizer_bytes(optimizer) == 0
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    assert accounting.optimizer_bytes(optimizer) == 2 * 32 * 4 + 4
    assert accounting.optimizer_bytes(optimizer, masks) == 2 * 16 * 4 + 4
    with pytest.raises(ConfigError, match="named_parameters"):
        accounting.optimizer_bytes(torch.optim.Adam(model.parameters()), masks)


# --------------------------------------------------------------------------- churn


def test_churn_by_hand():
    before = {"w": torch.tensor([True, True, False, False])}
    after = {"w": torch.tensor([True, False, True, True])}
    weights = ({"w": torch.tensor([1.0, 2.0, 0.0, 0.0])}, {"w": torch.tensor([0.0, 0.0, 3.0, 0.0])})
    change = accounting.churn(before, after, weights)["w"]
    assert (change.total, change.dropped, change.grown, change.flips, change.moved) == (4, 1, 2, 3, 6.0)
    assert accounting.sad(before, after) == 3
    assert accounting.sad(before, before) == 0
    with pytest.raises(ConfigError, match="'v'"):
        accounting.churn(before, after | {"v": after["w"]})
    with pytest.raises(ShapeError, match="changed its shape"):
        accounting.churn(before, {"w": torch.ones(3, dtype=torch.bool)})


def test_gradient_statistics_by_hand():
    model = nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    stats = accounting.gradient_statistics(model, {"weight": torch.tensor([[True, False]])})
    assert stats == {"weight": {"norm": 5.0, "mean": 3.5, "variance": 0.25, "kept_norm": 3.0}}
