"""The small Llama: causality, Hugging Face files, equality with transformers where installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gossamer.errors import CheckpointError
from gossamer.models import Llama, LlamaConfig, build, load_llama, save_llama
from gossamer.models.language import read_config

PLAIN = LlamaConfig(vocabulary=31, width=24, hidden=40, depth=2, heads=4, kv_heads=4, head_width=6)
GROUPED = dataclasses.replace(PLAIN, kv_heads=2, head_width=8, rope_base=500.0)
TIED = dataclasses.replace(GROUPED, tied=True)
SCALED = dataclasses.replace(TIED, rope_scaling=(8.0, 1.0, 4.0, 16))
CONFIGS = {"plain": PLAIN, "grouped": GROUPED, "tied": TIED, "scaled": SCALED}
TOKENS = torch.randint(31, (2, 40), generator=torch.Generator().manual_seed(0))


def random_llama(config: LlamaConfig) -> Llama:
    """A model whose norms and attention matter: weights of order one."""
    model = Llama(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model.eval()


def test_a_position_sees_only_the_past() -> None:
    model = random_llama(GROUPED)
    changed = TOKENS.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 31
    one, other = model(TOKENS), model(changed)
    assert torch.allclose(one[:, :20], other[:, :20], atol=1e-5)
    assert not torch.allclose(one[:, 20:], other[:, 20:], atol=1e-2)


@pytest.mark.parametrize("name", CONFIGS)
def test_files_round_trip(tmp_path: Path, name: str) -> None:
    model = random_llama(CONFIGS[name])
    save_llama(model, tmp_path)
    loaded = load_llama(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert (loaded.head.weight is loaded.embed.weight) == model.config.tied
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    model = random_llama(CONFIGS[name])
    save_llama(model, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    with torch.no_grad():
        assert torch.equal(load_llama(tmp_path / "theirs")(TOKENS), model(TOKENS))


def test_shards_are_joined_and_stay_in_their_folder(tmp_path: Path) -> None:
    model = random_llama(PLAIN)
    save_llama(model, tmp_path)
    named = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    parts = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(named)}
    for part in set(parts.values()):
        save_file({name: named[name] for name in named if parts[name] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    assert torch.equal(load_llama(tmp_path)(TOKENS), model(TOKENS))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(named, "../outside.safetensors")}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_llama(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_llama(tmp_path)


def saved(tmp_path: Path, **changes: Any) -> Path:
    save_llama(random_llama(PLAIN), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "lacks or garbles 'factor'"),
        ({"hidden_size": "wide"}, "lacks or garbles"),
        ({"num_hidden_layers": 3}, r"lack 'blocks\.2\."),
        ({"num_hidden_layers": 1}, r"unknown 'blocks\.1\."),
        ({"vocab_size": 32}, "has shape"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_llama(saved(tmp_path, **changes))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_llama(tmp_path)
    saved(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_llama(tmp_path)


def test_older_configurations_keep_rope_apart() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1}
    scaling = {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    old = sizes | {"model_type": "llama", "num_attention_heads": 2, "rope_theta": 123.0}
    config = read_config(old | {"rope_scaling": scaling | {"original_max_position_embeddings": 64}})
    assert (config.rope_base, config.rope_scaling) == (123.0, (8.0, 1.0, 4.0, 64))
    assert (config.kv_heads, config.head_width, config.tied) == (2, 4, False)
    assert read_config(old).rope_scaling is None


def test_builder_sizes() -> None:
    model = build("llama", shape=(32,), classes=50, width=48, heads=6, kv_heads=2, tied=True)
    assert isinstance(model, Llama)
    assert (model.config.hidden, model.config.head_width, model.config.context) == (128, 8, 32)
    assert model(torch.randint(50, (3, 32))).shape == (3, 32, 50)
    assert len({id(p) for p in (model.head.weight, model.embed.weight)}) == 1
