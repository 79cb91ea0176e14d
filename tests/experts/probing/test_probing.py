"""Probing: scores by hand, cuts that come back bit for bit, partitions that keep the function, bad input."""

import copy

import pytest
import torch
from torch import nn

from gossamer.claims.unified_testbed import GEN, UND, Unified, flow_loss, noisy
from gossamer.errors import ConfigError, MaskError, NumericsError
from gossamer.experts.probing import (
    PRESETS,
    Component,
    PartitionedFFN,
    calibrate,
    cut_depth,
    cut_heads,
    cut_width,
    drop_layers,
    find_layers,
    partition,
    sensitivity,
    to_moe,
    tune,
)
from gossamer.models import Llama, LlamaConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Unified().eval()


def batch(count=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return noisy(torch.randn(count, 16, 4, generator=rng), torch.arange(count) % 10, seed)


def outputs(model):
    x, y, e, t = batch()
    with torch.no_grad():
        return model.understand(x), model.generate(y, e, t)


def seen(model, component, task="generation"):
    run = flow_loss if task == "generation" else (lambda m, b: m.understand(b[0]))
    return calibrate(model, component, [batch()], run)


def test_scores_by_hand(model):
    found = seen(model, GEN)
    kept = {}
    block = model.blocks[2].gen
    handles = [
        block.norm1.register_forward_pre_hook(lambda m, i: kept.update(x=i[0])),
        block.norm2.register_forward_pre_hook(lambda m, i: kept.update(r=i[0])),
        block.mlp.down.register_forward_pre_hook(lambda m, i: kept.update(h=i[0])),
        block.mlp.register_forward_hook(lambda m, i, o: kept.update(m=o)),
    ]
    outputs(model)
    [handle.remove() for handle in handles]
    x, r = kept["x"].flatten(0, 1), kept["r"].flatten(0, 1)
    y = r + kept["m"].flatten(0, 1)
    # outputs() draws the same pictures as pure noise, so compare calibration on those calls
    again = calibrate(model, GEN, [batch()], lambda m, b: m.generate(b[1], b[2], b[3]))
    for kind, one, two in (("block", x, y), ("attention", x, r), ("mlp", r, y)):
        wanted = nn.functional.cosine_similarity(one, two, -1).mean()
        assert again.cosine(kind)[2] == pytest.approx(float(wanted), abs=1e-5)
    weight = block.mlp.down.weight.detach()
    wanted = kept["h"].flatten(0, 1).abs().mean(0) * weight.norm(dim=0)
    torch.testing.assert_close(again.neurons(2, weight), wanted, rtol=1e-4, atol=1e-6)
    assert set(found.tokens.values()) == {6 * 16}


def test_calibrations_of_two_tasks_add_up(model):
    one, two = seen(model, UND), seen(model, UND, "understanding")
    torch.testing.assert_close((one + two).activity[0], (two + one).activity[0])
    assert (one + two).tokens[0] == one.tokens[0] + two.tokens[0]


def test_a_layer_that_adds_nothing_goes_first(model):
    with torch.no_grad():
        for part in (model.blocks[3].gen.out, model.blocks[3].gen.mlp.down):
            part.weight.zero_()
        model.blocks[3].gen.out.bias.zero_()
    cosines = seen(model, GEN).cosine("block")
    assert cosines[3] == pytest.approx(1.0, abs=1e-5)
    assert drop_layers(cosines, 5 / 6) == [3]


@pytest.mark.parametrize("kind", ["block", "attention", "mlp"])
def test_cuts_come_back_bit_for_bit(model, kind):
    before, state = outputs(model), copy.deepcopy(model.state_dict())
    found = seen(model, GEN)
    for act in (
        lambda: cut_depth(model, GEN, found, 0.5, kind),
        lambda: cut_width(model, GEN, found, 0.5),
        lambda: cut_heads(model, GEN, found, 0.5),
    ):
        cut = act()
        changed = outputs(model)
        assert not torch.equal(changed[1], before[1])
        assert torch.equal(changed[0], before[0])  # understanding does not read the generation part
        cut.undo()
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_keeping_all_changes_nothing(model):
    before, found = outputs(model), seen(model, UND)
    for cut in (
        cut_depth(model, UND, found, 1.0),
        cut_width(model, UND, found, 1.0),
        cut_heads(model, UND, found, 1.0),
    ):
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))
        assert cut.removed == 0


def test_a_narrow_model_is_the_masked_model(model):
    found = seen(model, GEN)
    masked = copy.deepcopy(model)
    for number, block in enumerate(masked.blocks):
        weight = block.gen.mlp.down.weight
        score = found.neurons(number, weight.detach())
        kept = score.argsort(descending=True, stable=True)[:16]
        with torch.no_grad():
            weight.mul_(torch.zeros(64).index_fill(0, kept, 1.0))
    cut = cut_width(model, GEN, found, 0.25)
    torch.testing.assert_close(outputs(model)[1], outputs(masked)[1], rtol=1e-5, atol=1e-6)
    assert cut.removed == 6 * 3 * 32 * 48
    assert sum(p.numel() for p in masked.parameters()) - sum(p.numel() for p in model.parameters()) == cut.removed


def test_snake_order_gives_like_experts():
    scores = torch.rand(64, generator=torch.Generator().manual_seed(0))
    shared, chosen = partition(scores, 8)
    assert len(shared) == 0
    assert sorted(chosen.flatten().tolist()) == list(range(64))
    sums = scores[chosen].sum(1)
    chunks = scores.sort(descending=True).values.view(8, 8).sum(1)
    assert float(sums.max() - sums.min()) <= float(scores.max() - scores.min())
    assert float(sums.max() - sums.min()) < float(chunks.max() - chunks.min()) / 5
    always, rest = partition(scores, 6, shared=0.25)
    assert sorted([*always.tolist(), *rest.flatten().tolist()]) == list(range(64))
    assert float(scores[always].min()) >= float(scores[rest].max())


@pytest.mark.parametrize("shared", [0.0, 0.25])
def test_all_experts_with_a_zero_router_are_the_dense_layer(model, shared):
    mlp = model.blocks[0].gen.mlp
    experts = 8 if shared == 0 else 6
    always, chosen = partition(torch.rand(64), experts, shared)
    whole = PartitionedFFN(mlp, chosen, always, experts, noise=0.0)
    x, twin = torch.randn(3, 5, 32, requires_grad=True), torch.randn(1)
    torch.testing.assert_close(whole(x), mlp(x), rtol=1e-5, atol=1e-6)
    whole(x).square().sum().backward()
    twin = x.grad.clone()
    x.grad = None
    mlp.zero_grad()
    mlp(x).square().sum().backward()
    router_part = whole(x.detach())  # the router's own gradient is no part of the dense layer's
    assert router_part.shape == x.shape
    torch.testing.assert_close(whole.experts[2]["up"].weight.grad, mlp.up.weight.grad[chosen[2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        whole.experts[2]["down"].weight.grad, mlp.down.weight.grad[:, chosen[2]], rtol=1e-4, atol=1e-5
    )
    assert twin.shape == x.shape


def test_tuning_the_router_leaves_experts_alone(model):
    found = seen(model, GEN)
    moe = to_moe(model, GEN, found, 8, 4, keep_dense=(0, -1)).model
    layers = [m for m in moe.modules() if isinstance(m, PartitionedFFN)]
    assert len(layers) == 4  # first and last stay dense
    before = {n: p.detach().clone() for n, p in moe.named_parameters()}
    tune(moe, flow_loss, [batch(seed=s) for s in range(3)], phase="router", lr=0.05)
    changed = {n for n, p in moe.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("router" in name for name in changed)
    assert all(p.requires_grad for p in moe.parameters())
    tune(moe, flow_loss, [batch()], phase="full", lr=0.01)
    changed = {n for n, p in moe.named_parameters() if not torch.equal(p, before[n])}
    assert any(".experts." in name for name in changed)
    assert not any(".und." in name for name in changed)
    assert float(layers[0].load.sum()) == pytest.approx(4.0)


def test_frozen_experts_pass_gradients_down(model):
    found = seen(model, GEN)
    moe = to_moe(model, GEN, found, 8, 4).model
    for layer in moe.modules():
        if isinstance(layer, PartitionedFFN):
            layer.experts.requires_grad_(False)
    flow_loss(moe, batch()).backward()
    assert float(moe.draw.weight.grad.abs().sum()) > 0


def test_a_language_model_with_ready_patterns():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(width=32, hidden=48, depth=3, heads=2, kv_heads=2)).eval()
    component = PRESETS["gossamer"][0]
    assert [layer.number for layer in find_layers(model, component)] == [0, 1, 2]
    tokens = torch.randint(256, (2, 12))
    found = calibrate(model, component, [tokens])
    with torch.no_grad():
        whole = model(tokens)
        table = sensitivity(
            model, [component], {"all": found}, {"shift": lambda m: float((m(tokens) - whole).abs().mean())},
            cuts=("depth", "depth: mlp", "width"), keep=(0.6, 0.3),
        )  # fmt: skip
    assert table.whole == {"shift": 0.0}
    assert len(table.rows) == 6
    assert all(row["shift"] > 0 for row in table.rows)
    assert all(row["removed"] > 0 for row in table.rows)
    assert torch.equal(model(tokens).detach(), whole)


def test_routers_of_zeros_are_warned_of(model):
    with pytest.warns(UserWarning, match="every token to the same 4 of 8 experts"):
        to_moe(model, GEN, seen(model, GEN), 8, 4, noise=0.0)


def test_the_page_shows_every_row(model, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need the report extra")
    table = sensitivity(model, [UND, GEN], {"und": seen(model, UND), "gen": seen(model, GEN)}, {"one": lambda m: 1.0})
    text = table.write_page(tmp_path / "probe.html").read_text()
    assert text.count("<tr>") == 2 + len(table.rows)
    assert "<svg" in text


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda m: find_layers(m, Component("x", r"none\.(\d+)", r"a(\d)", r"b(\d)")),
            ConfigError,
            "unknown norm of component",
        ),
        (lambda m: find_layers(m, Component("x", "blocks", "a", "b")), ConfigError, "needs one group"),
        (
            lambda m: sensitivity(m, [UND, Component("twin", UND.norm, UND.attention, UND.mlp)], {}, {}),
            ConfigError,
            "belongs to",
        ),
        (
            lambda m: calibrate(m, GEN, [batch()], lambda n, b: n.understand(b[0])),
            ConfigError,
            "no token of component 'gen'",
        ),
        (
            lambda m: calibrate(m, UND, [batch()[0] * torch.nan], lambda n, b: n.understand(b)),
            NumericsError,
            "not finite",
        ),
        (lambda m: cut_width(m, UND, seen(m, UND), 0.0), ConfigError, r"keep must lie in \(0, 1\], got 0.0"),
        (lambda m: cut_width(m, UND, seen(m, UND), 0.001), ConfigError, "none of its 64 neurons"),
        (
            lambda m: cut_width(m, UND, seen(m, UND), 0.5, scores=lambda n, w: torch.zeros(64)),
            ConfigError,
            "scores.*are zero",
        ),
        (lambda m: drop_layers({0: 0.5}, 1e-10), MaskError, "drops them all"),
        (lambda m: cut_depth(m, UND, seen(m, UND), 0.5, "head"), ConfigError, "kinds of cut layers"),
        (
            lambda m: cut_heads(m, Component("x", UND.norm, UND.attention, UND.mlp), seen(m, UND)),
            ConfigError,
            "needs heads=",
        ),
        (lambda m: partition(torch.rand(64), 10), ConfigError, "cannot be dealt to 10 experts; 8 would do"),
        (lambda m: to_moe(m, UND, seen(m, UND), 8, 9), ConfigError, r"top_k must lie in 1 \.\.\. 8 experts, got 9"),
        (lambda m: tune(m, flow_loss, []), ConfigError, "of a model that to_moe made"),
        (lambda m: sensitivity(m, [UND], {}, {"a": len}, cuts=("deep",)), ConfigError, "unknown cut 'deep'"),
    ],
)
def test_bad_input_is_named(model, call, error, text):
    with pytest.raises(error, match=text):
        call(model)
