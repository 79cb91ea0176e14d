"""The BAGEL-shaped transformer: names of the published checkpoint, streams that are cut apart, files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from gossamer.errors import CheckpointError, ConfigError, ShapeError
from gossamer.experts.probing import PRESETS, calibrate, cut_depth, find_layers, to_moe
from gossamer.experts.probing.bagel import Bagel, BagelConfig, load_bagel

SMALL = BagelConfig(width=32, hidden=48, depth=3, heads=4, kv_heads=2, vocabulary=20, latent=4, side=3)
UND, GEN = PRESETS["bagel"]
TOKENS = torch.arange(10).view(2, 5)
LATENTS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
CALL = (TOKENS, LATENTS, torch.tensor([0.3, 0.8]), (2, 3))


def made():
    torch.manual_seed(0)
    model = Bagel(SMALL).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model


def test_the_full_size_has_the_published_names_and_shapes():
    with torch.device("meta"):
        state = Bagel().state_dict()
    layer = "language_model.model.layers.27"
    for name, shape in {
        "language_model.model.embed_tokens.weight": (152064, 3584),
        "language_model.model.norm_moe_gen.weight": (3584,),
        "language_model.lm_head.weight": (152064, 3584),
        f"{layer}.self_attn.q_proj.bias": (3584,),
        f"{layer}.self_attn.k_proj_moe_gen.weight": (512, 3584),
        f"{layer}.self_attn.q_norm_moe_gen.weight": (128,),
        f"{layer}.self_attn.o_proj_moe_gen.weight": (3584, 3584),
        f"{layer}.mlp_moe_gen.down_proj.weight": (3584, 18944),
        f"{layer}.post_attention_layernorm_moe_gen.weight": (3584,),
        "time_embedder.mlp.2.weight": (3584, 3584),
        "vae2llm.weight": (3584, 64),
        "llm2vae.bias": (64,),
        "latent_pos_embed.pos_embed": (4096, 3584),
    }.items():
        assert tuple(state[name].shape) == shape, name
    assert f"{layer}.self_attn.o_proj.bias" not in state
    assert len(find_layers(made(), GEN)) == 3


def test_text_is_causal_and_does_not_see_latents():
    model = made()
    with torch.no_grad():
        logits, velocity = model(*CALL)
        alone, none = model(TOKENS)
        later = TOKENS.clone()
        later[:, -1] = 19
        changed, moved = model(later, *CALL[1:])
    assert none is None
    assert torch.equal(logits, alone)
    assert torch.allclose(logits[:, :-1], changed[:, :-1], atol=1e-6)
    assert float((velocity - moved).abs().max()) > 1e-4  # latents see the text


def test_latents_attend_to_each_other_and_know_their_places_and_time():
    model = made()
    with torch.no_grad():
        _, velocity = model(*CALL)
        other = LATENTS.clone()
        other[:, -1] += 1
        _, first = model(TOKENS, other, *CALL[2:])
        _, later = model(TOKENS, LATENTS, CALL[2] + 0.1, (2, 3))
        _, turned = model(*CALL[:3], (3, 2))
    for changed in (first, later, turned):
        assert float((velocity - changed)[:, 0].abs().max() + (velocity - changed)[:, 2].abs().max()) > 1e-5


def test_streams_are_cut_apart_and_generation_becomes_experts():
    model = made()
    with torch.no_grad():
        logits, velocity = model(*CALL)
        seen = {c.name: calibrate(model, c, [CALL], lambda m, b: m(*b)) for c in (UND, GEN)}
        assert seen["und"].tokens[0] == 10
        assert seen["gen"].tokens[0] == 12
        cut = cut_depth(model, GEN, seen["gen"], 0.6)
        after = model(*CALL)
        assert torch.equal(after[0], logits)
        assert not torch.equal(after[1], velocity)
        cut.undo()
        cut = cut_depth(model, UND, seen["und"], 0.6)
        assert not torch.equal(model(*CALL)[1], velocity)
        cut.undo()
        moe = to_moe(model, GEN, seen["gen"], 16, 16, noise=0.0, keep_dense=())
        assert torch.allclose(model(*CALL)[1], velocity, atol=1e-4)
        moe.undo()
        assert torch.equal(model(*CALL)[1], velocity)


def test_checkpoints_in_the_published_layout(tmp_path):
    model = made()
    llm = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 20, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    (tmp_path / "llm_config.json").write_text(json.dumps(llm))
    whole = {"latent_patch_size": 1, "max_latent_size": 3, "vae_config": {"z_channels": 4}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match=r"holds none of ema\.safetensors"):
        load_bagel(tmp_path)
    extra = {"vit_model.embed.weight": torch.zeros(2), "connector.fc1.bias": torch.zeros(1)}
    save_file({name: value.contiguous() for name, value in model.state_dict().items()} | extra, tmp_path / WEIGHTS)
    again = load_bagel(tmp_path, torch.float32)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(*CALL), again(*CALL), strict=True))
    (tmp_path / "llm_config.json").write_text(json.dumps(llm | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match=r"another architecture.*layers\.2"):
        load_bagel(tmp_path)
    (tmp_path / "llm_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no configuration of BAGEL"):
        load_bagel(tmp_path)


WEIGHTS = "ema.safetensors"


def test_bad_sizes():
    with pytest.raises(ConfigError, match="do not divide"):
        BagelConfig(heads=5)
    with pytest.raises(ShapeError, match="2 x 2 must be"):
        made()(TOKENS, LATENTS, CALL[2], (2, 2))
