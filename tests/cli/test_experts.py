"""`gossamer experts` on a tiny CLIP and on what is none."""

import json

import numpy as np
import pytest
import torch

from gossamer.errors import ConfigError, DataError
from gossamer.experts.clip_classes import classify
from gossamer.experts.hf import load_dense

transformers = pytest.importorskip("transformers", reason="the models are transformers' own")
image = pytest.importorskip("PIL.Image", reason="needs pillow (extra superres)")

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["<pad>", "<unk>", "a", "red", "green", "blue", "picture", "<end>"]


@pytest.fixture
def clip(tmp_path):
    """A folder with a tiny CLIP, its tokenizer, and one with ten captioned pictures."""
    tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 6, "eos_token_id": 7, "bos_token_id": 1}
    config = transformers.CLIPConfig(
        projection_dim=8,
        vision_config={**TOWER, "image_size": 8, "patch_size": 4},
        text_config={**text, "pad_token_id": 0},
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "clip")
    (tmp_path / "pairs").mkdir()
    rows = []
    for i in range(10):
        pixels = np.zeros((10, 12, 3), dtype=np.uint8)
        pixels[..., i % 3] = 20 * i + 30
        image.fromarray(pixels).save(tmp_path / "pairs" / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"a {WORDS[3 + i % 3]} picture"})
    (tmp_path / "pairs" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_method_and_the_evaluation(gossamer, clip):
    options = ("--stages", 2, "--clusters", 1, "--batch", 4, "--steps", 2, "-o", "moe", "--json")
    done = gossamer("experts", "clip", "clip", "pairs", *options, cwd=clip)
    assert done.code == 0, done.err
    assert done.json["active parameters"] < done.json["parameters"]
    again = gossamer("experts", "clip", "clip", "pairs", *options, cwd=clip)
    assert "stage 2: read from" in again.err
    assert again.json == done.json
    found = gossamer("experts", "evaluate", "moe", "pairs", "--json", cwd=clip)
    assert found.code == 0, found.err
    assert found.json["first to second R@10"] == 1.0  # of ten
    shown = gossamer("experts", "inspect", "moe", "--json", cwd=clip)
    assert {row["experts"] for row in shown.json["layers"].values()} == {3}
    loaded = gossamer("experts", "inspect", "moe", "--pairs", "pairs", "--report", "page.html", "--json", cwd=clip)
    assert loaded.code == 0, loaded.err
    assert all(abs(sum(row["load"]) - 1) < 1e-5 for row in loaded.json["layers"].values())
    assert (clip / "page.html").read_text().count('class="load"') == 3 * len(loaded.json["layers"])


def test_upcycling_and_bad_input(gossamer, clip):
    done = gossamer("experts", "upcycle", "clip", "--last", 1, "-o", "moe", "--json", cwd=clip)
    assert done.code == 0, done.err
    assert (clip / "moe" / "tokenizer.json").is_file()
    assert gossamer("experts", "upcycle", "clip", "-k", 9, cwd=clip).code == 2
    none = gossamer("experts", "upcycle", "pairs", cwd=clip)
    assert none.code == 3
    assert "no checkpoint" in none.err
    (clip / "pairs" / "captions.jsonl").write_text('{"image": "0.png"}')
    broken = gossamer("experts", "evaluate", "clip", "pairs", cwd=clip)
    assert broken.code == 3
    assert "line 1" in broken.err


def test_zero_shot_classification(gossamer, clip):
    for number in range(10):
        folder = clip / "classes" / WORDS[3 + number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (clip / "pairs" / f"{number}.png").rename(folder / f"{number}.png")
    options = ("--classes", "classes", "--template", "a {} picture", "--json")
    done = gossamer("experts", "evaluate", "clip", *options, cwd=clip)
    assert done.code == 0, done.err
    assert (done.json["classes"], done.json["pictures"]) == (3, 10)
    assert 0 <= done.json["zero-shot accuracy"] <= 1
    model = load_dense(clip / "clip")
    for folder, templates, error, message in (
        ("classes", ["a picture"], ConfigError, "{}"),
        ("pairs", ["a {}"], DataError, "at least two"),
    ):
        with pytest.raises(error, match=message):
            classify(model, clip / "clip", clip / folder, templates)
    (clip / "classes" / "white").mkdir()
    with pytest.raises(DataError, match="'white' has no picture"):
        classify(model, clip / "clip", clip / "classes")


def test_a_published_mixture_is_inspected(gossamer, tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, head_dim=8,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    done = gossamer("experts", "inspect", "mixtral", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {row["experts"] for row in done.json["layers"].values()} == {4}
