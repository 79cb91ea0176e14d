"""prune_: exact counts, calibration behind pruned layers, bounded memory, resume, Hugging Face models, bad input."""

import gc
import json
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer
from gossamer.errors import CheckpointError, ConfigError, DataError, MaskError, NumericsError, ShapeError
from gossamer.models import build, load_llama, save_llama
from gossamer.recipes import calibration, oneshot, trial
from gossamer.recipes.calibration import Statistics, Walk, plain_forward
from gossamer.recipes.obs import reconstruction_error
from gossamer.recipes.oneshot import prune_
from gossamer.recipes.prunable import prunable
from gossamer.recipes.pruned import Record
from gossamer.runs.model_files import load_weights, save_model
from gossamer.sparsify.allocation import ERK, Global, budget
from gossamer.sparsify.groups import Select
from gossamer.sparsify.patterns import NM, Block

CALIBRATED = ("wanda", "sparsegpt")
TOKENS = [torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(4)]
IMAGES = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
HEAD = Select(exclude=("head.weight",))


def language():
    torch.manual_seed(0)
    return build("llama", shape=(16,), classes=50, width=32, depth=3, heads=4, kv_heads=2)


def network():
    torch.manual_seed(0)
    return build("resnet-20", shape=(3, 16, 16), classes=10)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8))


def correlated(samples=256, columns=16):
    g = torch.Generator().manual_seed(5)
    base = torch.randn(samples, 4, generator=g) @ torch.randn(4, columns, generator=g)
    return base + 0.5 * torch.randn(samples, columns, generator=g)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ------------------------------------------------------------------ what every score does


@pytest.mark.parametrize("score", oneshot.SCORES)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x4", NM(1, 4, layout="oihw_flat", tail="keep")])
def test_every_layer_is_pruned_exactly(score, pattern):
    net = network()
    select = Select(exclude=("conv1.weight",)) if pattern in ("2:4", "block:2x4") else Select()  # 3 input channels
    sparsity = 0.6 if pattern in ("unstructured", "block:2x4") else None
    report = prune_(net, sparsity, pattern, score, IMAGES, select=select)
    wanted = oneshot.as_pattern(pattern)
    weights = dict(net.named_parameters())
    total = sum(mask.numel() for mask in report.masks.values())
    cell = 8 if isinstance(wanted, Block) else 1
    if sparsity is not None:
        assert sum(row.kept for row in report.layers) == budget(0.4, total // cell) * cell
    for row in report.layers:
        mask = report.masks[row.name]
        wanted.check(mask)
        assert row.kept == int(mask.sum())
        assert not weights[row.name][~mask].count_nonzero()
        if score != "sparsegpt":
            assert torch.equal(weights[row.name][mask], dict(network().named_parameters())[row.name][mask])
    assert net.training
    assert set(report.masks) | set(report.skipped) == {n for n, p in net.named_parameters() if p.ndim > 1} - set(
        select.exclude
    )


def test_magnitude_keeps_the_largest_of_each_layer():
    net = perceptron()
    before = [m.weight.detach().abs() for m in net if isinstance(m, nn.Linear)]
    report = prune_(net, 0.75)
    for old, mask in zip(before, report.masks.values(), strict=True):
        assert int(mask.sum()) == old.numel() // 4
        assert float(old[mask].min()) >= float(old[~mask].max())


def test_wanda_ranks_within_each_output_by_weight_times_input_norm():
    layer = nn.Linear(16, 8)
    x = correlated()
    score = layer.weight.detach().abs() * x.norm(dim=0)
    report = prune_(layer, 0.5, score="wanda", calibration=[x], samples=None)
    expected = torch.zeros(8, 16, dtype=torch.bool).scatter(1, score.topk(8, 1).indices, True)
    assert torch.equal(report.masks["weight"], expected)


def test_another_allocation_keeps_the_global_count():
    net = perceptron()
    report = prune_(net, 0.8, score="wanda", calibration=[correlated()], allocation=ERK())
    total = sum(mask.numel() for mask in report.masks.values())
    assert sum(row.kept for row in report.layers) == budget(0.2, total)
    assert len({round(row.kept / row.total, 3) for row in report.layers}) > 1


def test_reconstruction_improves_from_magnitude_over_wanda_to_sparsegpt():
    """On inputs whose features differ in size and are correlated, which is what the methods are for."""
    x = correlated(512, 64) * torch.logspace(-1, 1, 64)
    errors = {}
    for score in oneshot.SCORES:
        torch.manual_seed(1)
        layer = nn.Linear(64, 48, bias=False)
        dense = layer.weight.detach().clone()
        report = prune_(layer, 0.5, score=score, calibration=[x], samples=None)
        errors[score] = reconstruction_error(dense, layer.weight.detach(), (x.T @ x).double())
        if score == "sparsegpt":
            assert report.layers[0].error == pytest.approx(errors[score], rel=1e-3)
    assert errors["sparsegpt"] < 0.5 * errors["wanda"] < 0.5 * errors["magnitude"]


@pytest.mark.parametrize("make", [network, language])
def test_the_loss_of_a_trained_model_suffers_less_with_calibration(make):
    """Output distance from the dense model, which is what one-shot pruning is to keep."""
    data = IMAGES if make is network else TOKENS
    select = Select() if make is network else HEAD
    dense, distances = make().eval(), {}
    for score in oneshot.SCORES:
        net = make().eval()
        prune_(net, 0.5, score=score, calibration=data, select=select)
        with torch.no_grad():
            distances[score] = sum(float((net(x) - dense(x)).square().sum()) for x in data)
    assert distances["sparsegpt"] < distances["magnitude"]
    assert distances["sparsegpt"] < distances["wanda"]


# ------------------------------------------------------------------ convolutions as matrices


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2, padding="valid"),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv1d(4, 6, 5, stride=2, padding=3, groups=2),
        nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)),
    ],
    ids=str,
)
def test_unfolded_inputs_reproduce_the_convolution(conv):
    conv = conv.double()
    x = torch.randn(2, 4, *(7, 8, 9)[: conv.weight.ndim - 2], dtype=torch.float64)
    (layer,), _ = prunable(conv, Select())
    rows = layer.rows(x)  # (groups, samples, columns)
    out = rows @ layer.oriented(conv.weight).reshape(layer.groups, -1, rows.shape[2]).transpose(1, 2)
    flat = conv(x).movedim(1, -1).flatten(0, -2) - conv.bias
    torch.testing.assert_close(out.transpose(0, 1).flatten(1), flat)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_grouped_and_depthwise_convolutions(pattern):
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    kept = Select(exclude=("2.weight",)) if pattern == "2:4" else Select()
    x = [torch.randn(4, 8, 9, 9)]
    report = prune_(net, None if pattern == "2:4" else 0.5, pattern, "sparsegpt", x, select=kept)
    assert report.density == pytest.approx(0.5, abs=0.01)
    for name, mask in report.masks.items():
        oneshot.as_pattern(pattern).check(mask)
        assert not net.get_parameter(name)[~mask].count_nonzero()


# ------------------------------------------------------------------ the walk


def test_plan_finds_chains_order_and_shared_inputs():
    net = language()
    layers, _ = prunable(net, HEAD)
    with calibration.at_rest(net):
        walk = Walk(net, layers, TOKENS)
    assert list(walk.plan.chains) == ["blocks"]
    names = [[layer.name.removeprefix("blocks.0.") for layer in unit.layers] for unit in walk.plan.units[:4]]
    assert names == [
        ["attention.q.weight", "attention.k.weight", "attention.v.weight"],
        ["attention.out.weight"],
        ["mlp.gate.weight", "mlp.up.weight"],
        ["mlp.down.weight"],
    ]
    assert len(walk.plan.units) == 12


@pytest.mark.parametrize("make", [network, language, perceptron])
def test_streaming_sees_what_the_whole_model_would_see_behind_pruned_layers(make, monkeypatch):
    """The same bits with and without chains, so hidden states are those of the pruned model."""
    data = {network: IMAGES, language: TOKENS, perceptron: list(correlated().split(64))}[make]
    streamed, whole = make(), make()
    one = prune_(streamed, 0.5, score="sparsegpt", calibration=data)
    assert one.chains
    monkeypatch.setattr(trial, "block_lists", lambda model, layers: {})
    two = prune_(whole, 0.5, score="sparsegpt", calibration=data)
    assert not two.chains
    assert [row.name for row in one.layers] == [row.name for row in two.layers]
    assert same(streamed, whole)


def test_one_unit_is_held_at_a_time():
    net = perceptron()
    layers, _ = prunable(net, Select())
    with calibration.at_rest(net):
        for _, measure in Walk(net, layers, [correlated()]):
            held = measure(True)
            gc.collect()
            assert [o for o in gc.get_objects() if type(o) is Statistics] == [held]
            del held


def test_chunked_inputs_give_the_same_statistics(monkeypatch):
    net, sums = network(), []
    layers, _ = prunable(net, Select())
    for chunk in (1, 2**24):
        monkeypatch.setattr(calibration, "_CHUNK", chunk)
        with calibration.at_rest(net):
            _, measure = next(iter(Walk(net, layers, IMAGES)))
            sums.append(measure(True))
    assert sums[0].samples == sums[1].samples == 24 * 256
    torch.testing.assert_close(sums[0].gram, sums[1].gram, rtol=1e-5, atol=1e-3)


class Crossed(nn.Module):
    """Blocks whose side input comes from the hidden state: no chain."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList(Mixed() for _ in range(3))

    def forward(self, x):
        side = x
        for block in self.inner:
            x, side = block(x, side), x
        return x


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, side):
        return torch.tanh(self.a(x) + self.b(side))


def test_blocks_that_hand_on_more_than_the_hidden_state_are_no_chain():
    report = prune_(Crossed(), 0.5, score="sparsegpt", calibration=[torch.randn(32, 6)])
    assert report.chains == ()
    assert len(report.layers) == 6


class Shared(nn.Module):
    """One layer called twice, one never."""

    def __init__(self):
        super().__init__()
        self.a, self.never = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.a(torch.relu(self.a(x)))


def test_a_layer_called_twice_is_measured_twice_and_an_idle_one_named():
    net = Shared()
    report = prune_(net, 0.5, score="wanda", calibration=[torch.randn(32, 6)])
    assert report.layers[0].samples == 64
    assert "does not call it" in report.skipped["never.weight"]
    assert "never.weight" in str(report)


def test_tied_weights_stay_dense():
    net = build("llama", shape=(16,), classes=50, width=16, depth=1, heads=2, tied=True)
    report = prune_(net, 0.5)
    assert "shared" in report.skipped["head.weight"]
    assert bool(net.embed.weight.count_nonzero() == net.embed.weight.numel())


def test_padding_does_not_count():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(9, 8), nn.Linear(8, 8)

        def forward(self, input_ids, attention_mask):
            return self.fc(self.embed(input_ids))

    ids = torch.randint(0, 8, (4, 6))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [2], [1]])).long()
    torch.manual_seed(0)
    one, two = Reader(), Reader()
    two.load_state_dict(one.state_dict())
    first = prune_(one, 0.5, score="sparsegpt", calibration=[{"input_ids": ids, "attention_mask": mask}])
    padded = torch.where(mask.bool(), ids, 8)
    prune_(two, 0.5, score="sparsegpt", calibration=[{"input_ids": padded, "attention_mask": mask}])
    assert first.layers[0].samples == 12
    assert torch.equal(one.fc.weight, two.fc.weight)


def test_samples_bound_the_calibration():
    report = prune_(perceptron(), 0.5, score="wanda", calibration=list(correlated().split(16)), samples=40)
    assert report.layers[0].samples == 48
    loaded = ((x, torch.zeros(len(x))) for x in correlated().split(16))  # a generator of (inputs, labels)
    assert prune_(perceptron(), 0.5, score="wanda", calibration=loaded, samples=None).layers[-1].samples == 256


# ------------------------------------------------------------------ singular Hessians


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_singular_hessians_are_damped_and_named(damping, caplog):
    """One sample, a dead column and a constant feature at once."""
    x = correlated(1)
    x[:, 3], x[:, 4] = 0.0, 1.0
    net = perceptron()
    with caplog.at_level(logging.WARNING):
        report = prune_(net, 0.5, score="sparsegpt", calibration=[x], damping=damping)
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert report.layers[0].dead == 1
    assert not report.masks["0.weight"][:, 3].any()
    assert all(row.damping >= damping > 0 or row.damping > 0 for row in report.layers)
    assert ("the Hessian of 0.weight is singular" in caplog.text) == (damping == 0)


# ------------------------------------------------------------------ resume and files


@pytest.mark.parametrize("score", oneshot.SCORES)
@pytest.mark.parametrize("after", [0, 2, 5])
def test_an_interrupted_call_resumes_with_the_same_bits(score, after, tmp_path, monkeypatch):
    whole, stopped, again = language(), language(), language()
    expected = prune_(whole, 0.6, score=score, calibration=TOKENS)
    save = Record.save

    def fail(self, number, *rest):
        save(self, number, *rest)
        if number == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Record, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        prune_(stopped, 0.6, score=score, calibration=TOKENS, progress=tmp_path / "p")
    monkeypatch.undo()
    assert len(list((tmp_path / "p").glob("unit-*.json"))) == after + 1
    report = prune_(again, 0.6, score=score, calibration=TOKENS, progress=tmp_path / "p")
    assert same(whole, again)
    assert all(torch.equal(report.masks[n], mask) for n, mask in expected.masks.items())
    assert [(r.name, r.kept, r.error) for r in report.layers] == [(r.name, r.kept, r.error) for r in expected.layers]


def test_progress_of_another_call_is_refused(tmp_path):
    folder = tmp_path / "p"
    prune_(language(), 0.6, score="wanda", calibration=TOKENS, progress=folder)
    for change in ({"sparsity": 0.5}, {"calibration": TOKENS[1:]}, {"score": "sparsegpt"}):
        options = {"sparsity": 0.6, "score": "wanda", "calibration": TOKENS} | change
        with pytest.raises(CheckpointError, match="other options"):
            prune_(language(), **options, progress=folder)


def test_saved_models_load_as_dense_ones(tmp_path):
    net = language()
    report = prune_(net, 0.5, score="sparsegpt", calibration=TOKENS, select=HEAD)
    save_model(tmp_path / "own", net, report.masks, report.as_json())
    plain = language()
    masks = load_weights(tmp_path / "own", plain)
    assert same(net, plain)
    assert all(torch.equal(masks[n], m) for n, m in report.masks.items())
    assert json.loads((tmp_path / "own" / "sparsity.json").read_text())["about"]["density"] == 0.5
    save_llama(net, tmp_path / "hf")
    assert same(net, load_llama(tmp_path / "hf"))


# ------------------------------------------------------------------ Hugging Face


def hugging_face(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        config = transformers.LlamaConfig(**small, intermediate_size=64, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4))
    if kind == "opt":
        sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32}
        return transformers.OPTForCausalLM(transformers.OPTConfig(**small, **sizes))
    if kind == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**small, intermediate_size=64))
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=50, **sizes, decoder_start_token_id=0, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


CHAINS = {
    "llama": ("model.layers",),
    "gpt2": ("transformer.h",),
    "opt": ("model.decoder.layers",),
    "bert": ("bert.encoder.layer",),
    "t5": ("encoder.block", "decoder.block"),
}


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("score", CALIBRATED)
def test_hugging_face_models(kind, score, tmp_path):
    net = hugging_face(kind)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in TOKENS]
    if kind == "t5":
        batches = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    report = prune_(
        net, None, "2:4", score, batches, select=Select(exclude=("classifier.weight",)) if kind == "bert" else Select()
    )
    assert report.chains == CHAINS[kind]
    assert report.density == 0.5
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert same(net, again)
    weights = dict(again.named_parameters())
    for name, mask in report.masks.items():
        assert not weights[name][~mask].count_nonzero()
    if kind == "gpt2":  # its weights are transposed: groups run along the inputs
        mask = report.masks["transformer.h.0.mlp.c_fc.weight"]
        assert bool((mask.t().reshape(-1, 4).sum(1) == 2).all())


def test_hugging_face_and_our_llama_are_pruned_alike(tmp_path):
    theirs = hugging_face("llama")
    theirs.save_pretrained(tmp_path)
    ours = load_llama(tmp_path)
    one = prune_(theirs, 0.5, score="sparsegpt", calibration=[{"input_ids": ids} for ids in TOKENS])
    two = prune_(ours, 0.5, score="sparsegpt", calibration=TOKENS, select=HEAD)
    assert len(one.layers) == len(two.layers) == 14
    for a, b in zip(one.layers, two.layers, strict=True):
        assert a.error == pytest.approx(b.error, rel=1e-3)


# ------------------------------------------------------------------ bad input


def test_nan_calibration_is_refused_by_name():
    x = correlated()
    x[3, 2] = float("nan")
    with pytest.raises(NumericsError, match="calibration batch 1 holds NaN"):
        prune_(perceptron(), 0.5, score="wanda", calibration=[correlated(), x], samples=None)


def test_an_overflow_inside_the_model_names_the_layer():
    class Burst(nn.Module):
        def forward(self, x):
            return x * 1e38 * 1e38

    net = nn.Sequential(nn.Linear(16, 16), Burst(), nn.Linear(16, 4))
    with pytest.raises(NumericsError, match=r"calibration batch 0 brings NaN or infinite inputs to 2\.weight"):
        prune_(net, 0.5, score="sparsegpt", calibration=[correlated()])


def test_bad_calls():
    net = perceptron()
    with pytest.raises(ConfigError, match="did you mean 'wanda'"):
        prune_(net, 0.5, score="wandas")
    with pytest.raises(ConfigError, match="unknown pattern '2:x'"):
        prune_(net, 0.5, "2:x")
    with pytest.raises(ConfigError, match="needs calibration data"):
        prune_(net, 0.5, score="wanda")
    with pytest.raises(ConfigError, match="give the sparsity"):
        prune_(net)
    with pytest.raises(ConfigError, match="density must lie in"):
        prune_(net, 1.0)
    with pytest.raises(ConfigError, match=r"2:4 has sparsity 0\.5, not 0\.9"):
        prune_(net, 0.9, "2:4")
    with pytest.raises(ShapeError, match=r"4\.weight: 3:5 does not divide 24 entries.*leave it out"):
        prune_(net, None, "3:5", select=Select(only=("4.*",)))
    with pytest.raises(ConfigError, match="whole rows"):
        prune_(net, 0.5, "rows", "sparsegpt", [correlated()])
    with pytest.raises(ConfigError, match="layer by layer"):
        prune_(net, 0.5, allocation=Global())
    with pytest.raises(ConfigError, match="nothing to prune in ReLU"):
        prune_(nn.ReLU(), 0.5)
    with pytest.raises(ConfigError, match="unknown weight pattern 'heat"):
        prune_(net, 0.5, select=Select(exclude=("heat.weight",)))
    with pytest.raises(DataError, match="calibration data are empty"):
        prune_(net, 0.5, score="wanda", calibration=[])
    with pytest.raises(DataError, match="batch 0 holds no tensor, it is a str"):
        prune_(net, 0.5, score="wanda", calibration=["a"])
    with pytest.raises(DataError, match=r"no calibration sample reaches 0\.weight"):
        prune_(net, 0.5, score="wanda", calibration=[torch.zeros(0, 16)])
    with pytest.raises(ConfigError, match="not a int"):
        prune_(net, 0.5, score="wanda", calibration=5)
    with pytest.raises(ConfigError, match="at least one sample, got samples=0"):
        prune_(net, 0.5, score="wanda", calibration=[correlated()], samples=0)
    with pytest.raises(DataError, match=r"Sequential cannot be run on calibration batch 0: .*shapes"):
        prune_(net, 0.5, score="wanda", calibration=[torch.randn(4, 7)])
    with pytest.raises(ConfigError, match="is a file"):
        prune_(net, 0.5, progress=__file__)
    with pytest.raises(MaskError, match="emptied"):
        prune_(nn.Linear(2, 2), 0.99)
    net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"0\.weight has NaN"):
        prune_(net, 0.5)


class Stacked(nn.Module):
    """Two experts in one tensor, as recent Hugging Face models hold them."""

    def __init__(self):
        super().__init__()
        self.router, self.experts, self.scale = (
            nn.Linear(6, 2),
            nn.Parameter(torch.randn(2, 6, 6)),
            nn.Parameter(torch.ones(1, 6)),
        )

    def forward(self, x):
        share = self.router(x).softmax(-1)
        return torch.einsum("bi,eio,be->bo", x, self.experts, share) * self.scale


def test_stacked_experts_and_recurrent_layers_stay_dense_and_are_named():
    report = prune_(Stacked(), 0.5, score="wanda", calibration=[torch.randn(8, 6)])
    assert report.skipped == {"experts": "weights of a Stacked are not pruned in one shot"}
    with pytest.raises(ConfigError, match=r"weight_ih_l0.*weights of a LSTM"):
        prune_(nn.LSTM(4, 4), 0.5)


def test_transposed_convolutions_stay_dense_and_are_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3))
    report = prune_(net, 0.5, score="wanda", calibration=[torch.randn(2, 3, 8, 8)])
    assert report.skipped == {"1.weight": "weights of a ConvTranspose2d are not pruned in one shot"}
    assert [row.name for row in report.layers] == ["0.weight"]
    with pytest.raises(ConfigError, match=r"nothing to prune in ConvTranspose2d: .*not pruned in one shot"):
        prune_(nn.ConvTranspose2d(8, 3, 3), 0.5)


def test_the_verb_is_public():
    assert gossamer.prune_ is prune_
    assert plain_forward(F.relu, torch.ones(2)).tolist() == [1.0, 1.0]


def test_half_precision_models_stay_in_their_type():
    net = language().bfloat16()
    report = prune_(net, 0.5, score="sparsegpt", calibration=TOKENS, select=HEAD)
    assert report.density == 0.5
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    for name, mask in report.masks.items():
        assert not net.get_parameter(name)[~mask].count_nonzero()
    assert all(row.error < 0.2 for row in report.layers)


def test_torchs_own_encoder_is_pruned_where_its_layers_are_called():
    """Attention there computes with its output layer's weight without calling it, which the report says."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    report = prune_(net, 0.5, score="sparsegpt", calibration=[torch.randn(8, 5, 16)])
    assert [row.name for row in report.layers] == [f"layers.{i}.linear{j}.weight" for i in (0, 1) for j in (1, 2)]
    kept = ("in_proj_weight", "out_proj.weight")
    assert set(report.skipped) == {f"layers.{i}.self_attn.{name}" for i in (0, 1) for name in kept}
    assert report.chains == ("layers",)
