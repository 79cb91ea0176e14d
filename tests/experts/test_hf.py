"""Hugging Face models: upcycled in place, saved, loaded; CLIP through all phases."""

import copy
import json

import pytest
import torch

from gossamer.errors import CheckpointError, ConfigError
from gossamer.experts import (
    TensorPairs,
    TopK,
    Training,
    dense_clip,
    encode_clip,
    find_ffn,
    load,
    moe_layers,
    moe_report,
    routed,
    save,
    stages,
    train_routers,
    upcycle,
    upcycle_from,
)
from gossamer.experts.hf import without_first
from gossamer.experts.padding import until_end

transformers = pytest.importorskip("transformers", reason="the models are transformers' own")

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "projection_dim": 8,
    "vision_config": {**TOWER, "image_size": 8, "patch_size": 4},
    "text_config": {
        **TOWER, "vocab_size": 50, "max_position_embeddings": 6, "eos_token_id": 49, "bos_token_id": 48,
        "pad_token_id": 0,
    },
}  # fmt: skip


def clip(seed=0):
    torch.manual_seed(seed)
    return dense_clip(CONFIG).eval()


def views(n=24):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 48, (n, 6), generator=generator)
    ids[:, -1] = 49
    return TensorPairs(torch.randn(n, 3, 8, 8, generator=generator), ids)


def test_clip_through_the_whole_method(tmp_path):
    base = clip()
    names = find_ffn(base, r".*\.mlp")
    assert len(names) == 4
    how = Training(steps=2, batch=4, lr=1e-3)
    made = stages(base, views(), encode_clip, names, how, count=2, clusters=1)
    mixed = upcycle_from(made, names, router=TopK(2), dropout=0.1)
    train_routers(mixed, views(), encode_clip, how)
    mixed.eval()
    assert isinstance(mixed, transformers.CLIPModel)
    given = views().batch(torch.arange(5))
    out = mixed(pixel_values=given[0], input_ids=given[1])
    assert out.logits_per_image.shape == (5, 5)
    save(mixed, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, transformers.CLIPModel)
    assert torch.equal(again(pixel_values=given[0], input_ids=given[1]).logits_per_image, out.logits_per_image)


@pytest.mark.parametrize("init", ["copy", "slices"])
def test_upcycled_clip_equals_the_dense_one(init):
    dense = clip()
    moe = upcycle(copy.deepcopy(dense), r".*\.mlp", init=init, last=1)
    given = views().batch(torch.arange(4))
    for one, two in zip(encode_clip(dense, *given), encode_clip(moe, *given), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_language_model_upcycles_saves_and_loads(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    dense = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 40, (2, 7))
    expected = dense(ids).logits
    moe = upcycle(dense, r".*\.mlp")
    assert torch.allclose(moe(ids).logits, expected, atol=1e-5)
    save(moe, tmp_path)
    assert torch.equal(load(tmp_path)(ids).logits, moe(ids).logits)


SIZE = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40,
}  # fmt: skip
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
PICTURES = {**TOWER, "image_size": 8, "patch_size": 4}
# class -> configuration, networks
MODELS = {
    "GPT2LMHeadModel": ({"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}, 2),
    "BertForMaskedLM": ({**SIZE, "intermediate_size": 24}, 2),
    "RobertaForMaskedLM": ({**SIZE, "intermediate_size": 24}, 2),
    "OPTForCausalLM": ({**SIZE, "ffn_dim": 24, "word_embed_proj_dim": 16}, 2),
    "BartForConditionalGeneration": (BART, 3),
    "T5ForConditionalGeneration": (T5, 2),
    "T5EncoderModel": ({**T5, "feed_forward_proj": "gated-gelu"}, 1),
    "GPTNeoXForCausalLM": ({**SIZE, "intermediate_size": 24}, 2),
    "Phi3ForCausalLM": ({**SIZE, "intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0}, 2),
    "ViTForImageClassification": (PICTURES, 2),
    "Dinov2Model": (PICTURES, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_forms_upcycle_save_and_load(tmp_path, name):
    settings, networks = MODELS[name]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings)).eval()
    given = {"input_ids": torch.arange(2, 12).view(2, 5)} if "vocab_size" in settings else {
        "pixel_values": torch.randn(2, 3, 8, 8)
    }  # fmt: skip
    if model.config.is_encoder_decoder and "Encoder" not in name:
        given["decoder_input_ids"] = given["input_ids"]
    before = model(**given)[0]
    upcycle(model)
    assert len(moe_layers(model)) == networks
    found = model(**given)[0]
    assert torch.allclose(found, before, atol=1e-5)
    save(model, tmp_path)
    again = load(tmp_path)
    assert type(again) is kind
    assert torch.equal(again(**given)[0], found)


def test_stages_train_the_whole_of_a_loose_network():
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZE, intermediate_size=24)).eval()
    names = find_ffn(model)
    assert names == [f"encoder.layer.{i}.intermediate.dense" for i in range(2)]
    ids = TensorPairs(*torch.randint(2, 40, (2, 8, 5)))
    encode = lambda m, one, two: (m(one).pooler_output, m(two).pooler_output)  # noqa: E731
    base, other = stages(model, ids, encode, names, Training(2, batch=4, lr=1e-2), count=1, clusters=1)
    assert len(list(base.get_submodule(names[0]).parameters())) == 4
    changed = [n for n, p in other.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert len(changed) == 8
    mixed = upcycle_from([base, other], names)
    assert len(moe_layers(mixed)) == 2


def test_the_type_of_the_weights_is_kept(tmp_path):
    moe = upcycle(clip().to(torch.bfloat16))
    save(moe, tmp_path)
    assert load(tmp_path).dtype == torch.bfloat16
    assert load(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_a_damaged_file_is_named(tmp_path):
    save(upcycle(clip()), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path)


def test_padding_reaches_no_expert():
    mixed = upcycle(clip(), init="noise", noise=0.5)
    pixels, ids = views().batch(torch.arange(3))
    short = ids.clone()
    short[:, 3] = 49
    short[:, 4:] = 0
    with routed(mixed) as plans:
        texts = encode_clip(mixed, pixels, short)[1]
    counts = {name: int(plan.counts.sum()) for name, (plan,) in plans.items()}
    assert counts == {name: 2 * 3 * (4 if "text" in name else 5) for name in counts}
    plain = mixed.get_text_features(input_ids=short).pooler_output
    assert torch.allclose(texts, plain, atol=1e-6)
    found = moe_report(mixed, lambda m: encode_clip(m, pixels, short))["layers"]
    assert all(row["dropped"] == 0 for row in found.values())


def test_where_a_text_ends():
    ids = torch.tensor([[5, 9, 0, 0], [9, 9, 1, 1], [5, 6, 7, 8]])
    wanted = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, True, True]])
    assert torch.equal(until_end(ids, 9), wanted)
    assert torch.equal(until_end(torch.tensor([[5, 9, 2, 2]]), 2), wanted[:1])


def test_frozen_first_blocks_stay_dense():
    names = find_ffn(clip(), r".*\.mlp")
    kept = without_first(names, 1)
    assert [n for n in names if n not in kept] == ["vision_model.encoder.layers.0.mlp"]


def test_bad_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        dense_clip(tmp_path / "none")
    with pytest.raises(CheckpointError, match="gossamer_experts"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="save_pretrained"):
        save(torch.nn.Linear(2, 2), tmp_path)
    moe = upcycle(clip(), r".*\.mlp")
    save(moe, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["gossamer_experts"]["layers"]["vision_model.encoder.layers.0.mlp"]["experts"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the model needs"):
        load(tmp_path)
    del config["gossamer_experts"]["layers"]["vision_model.encoder.layers.0.mlp"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another architecture"):
        load(tmp_path)
    path.write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama'"):
        dense_clip(tmp_path)
