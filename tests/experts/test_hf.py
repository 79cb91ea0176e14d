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
    save,
    stages,
    train_routers,
    upcycle,
    upcycle_from,
)
from gossamer.experts.hf import without_first

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
