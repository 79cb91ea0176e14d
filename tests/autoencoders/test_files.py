"""Own files and SAELens' format; the layouts are checked against formulas, and against SAELens where installed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gossamer.autoencoders.export import folded
from gossamer.autoencoders.files import load, load_saelens, save, save_saelens
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import FeatureChoice, Gated, JumpReLU, MutualChoice, ReLU, TokenChoice
from gossamer.errors import CheckpointError, ConfigError

KINDS = (TokenChoice(3), MutualChoice(2.5), FeatureChoice(2), ReLU(4), Gated(4), JumpReLU(4))
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def _made(select, **options):
    sae = SparseAutoencoder(6, 16, select, **options)
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    sae.scale_in.fill_(1.7)
    sae.scale_out.fill_(1.7)
    if select.couples:
        sae.calibrate_threshold([X])
    return sae.eval()


@pytest.mark.parametrize("select", KINDS, ids=lambda s: s.name)
def test_own_files_keep_everything(select, tmp_path):
    sae = _made(select)
    save(tmp_path, sae, {"module": "blocks.1"})
    other, about = load(tmp_path)
    assert about == {"module": "blocks.1"}
    assert other.select == select
    for name, value in sae.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]) or bool(value.isnan().any())
    assert torch.equal(other(X), sae(X))


@pytest.mark.parametrize("select", KINDS, ids=lambda s: s.name)
def test_saelens_files_hold_the_same_function(select, tmp_path):
    sae = _made(select)
    save_saelens(tmp_path, sae, {"hook_name": "blocks.1"})
    other, about = load(tmp_path)
    assert about["hook_name"] == "blocks.1"
    assert torch.allclose(other(X), sae(X), atol=1e-5)
    w, config = load_file(tmp_path / "sae_weights.safetensors"), json.loads((tmp_path / "cfg.json").read_text())
    assert (config["d_in"], config["d_sae"], w["W_enc"].shape) == (6, 16, (6, 16))
    if config["architecture"] == "jumprelu":  # by SAELens' formula
        pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        z = pre.relu() * (pre > w["threshold"])
        assert torch.allclose(z @ w["W_dec"] + w["b_dec"], sae(X), atol=1e-5)
    if config["architecture"] == "gated":
        centred = X - w["b_dec"]
        gate = centred @ w["W_enc"] + w["b_gate"] > 0
        z = gate * (centred @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        assert torch.allclose(z @ w["W_dec"] + w["b_dec"], sae(X), atol=1e-5)


@pytest.mark.parametrize("select", [ReLU(4), MutualChoice(3)], ids=lambda s: s.name)
def test_transcoders_travel(select, tmp_path):
    sae = _made(select, d_out=3)
    save_saelens(tmp_path, sae)
    assert torch.allclose(load(tmp_path)[0](X), sae(X), atol=1e-5)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["d_out"], config["apply_b_dec_to_input"]) == (3, False)


@pytest.mark.parametrize("select", KINDS, ids=lambda s: s.name)
def test_saelens_itself_codes_the_same(select, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="the package sae-lens is not installed")
    sae = _made(select)
    save_saelens(tmp_path, sae)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        assert torch.allclose(theirs.encode(X), folded(sae).encode(X), atol=1e-5)
        assert torch.allclose(theirs(X), sae(X), atol=1e-5)


def test_batch_topk_of_dictionary_learning_codes_the_same():
    theirs = pytest.importorskip("dictionary_learning.trainers.batch_top_k", reason="dictionary-learning is absent")
    sae = SparseAutoencoder(6, 16, MutualChoice(3))
    other = theirs.BatchTopKSAE(6, 16, 3)
    with torch.no_grad():
        sae.b_dec.add_(0.3)
        other.encoder.weight.copy_(sae.encoder)
        other.decoder.weight.copy_(sae.decoder.t())
        other.b_dec.copy_(sae.b_dec)
        assert torch.allclose(other.encode(X, use_threshold=False), sae.encode(X, batch=True), atol=1e-6)
        assert torch.allclose(other.decode(other.encode(X, use_threshold=False)), sae(X, batch=True), atol=1e-6)


def test_old_topk_files_are_read_as_topk(tmp_path):
    save_saelens(tmp_path, _made(TokenChoice(3)))
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["k"], config["metadata"]
    config |= {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert load_saelens(tmp_path)[0].select == TokenChoice(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "temporal"}, "unknown architecture of SAELens 'temporal'"),
        ({"normalize_activations": "layer_norm"}, "trained with normalize_activations='layer_norm'"),
        ({"d_sae": 15}, "another model"),
        ({"architecture": "gated"}, "another model"),
        ({"architecture": "topk", "k": None}, "is damaged or no 'topk' autoencoder"),
    ],
)
def test_foreign_saelens_files_are_named(change, message, tmp_path):
    save_saelens(tmp_path, _made(ReLU(4)))
    config = json.loads((tmp_path / "cfg.json").read_text()) | change
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_damage_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path)
    sae = _made(TokenChoice(3))
    save(tmp_path, sae)
    content = (tmp_path / "sae.safetensors").read_bytes()
    (tmp_path / "sae.safetensors").write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path)
    save_file(
        {name: value for name, value in sae.state_dict().items() if name != "encoder"}, tmp_path / "sae.safetensors"
    )
    with pytest.raises(CheckpointError, match="encoder is missing"):
        load(tmp_path)
    (tmp_path / "sae.json").write_text('{"format": "gossamer-sae", "sae": {"version": 1}}')
    with pytest.raises(CheckpointError, match="describes no autoencoder"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="no 'topk' transcoder"):
        save_saelens(tmp_path, _made(TokenChoice(3), d_out=3))
    with pytest.raises(ConfigError, match="calibrate_threshold"):
        save_saelens(tmp_path, SparseAutoencoder(6, 16, MutualChoice(2)))
