"""`gossamer probe` on tiny models of every form that the test makes."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
WORDS = ["[UNK]", "[PAD]", "[MASK]", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog"]
IDS = {"bos_token_id": 0, "eos_token_id": 11, "pad_token_id": 1}


def models():
    """Name -> a tiny model of that form."""
    t = transformers
    gpt2 = t.GPT2Config(vocab_size=16, n_embd=16, n_layer=3, n_head=2, n_inner=24, n_positions=32)
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    text = {**SMALL, **IDS, "vocab_size": 16, "max_position_embeddings": 6}
    clip = t.CLIPConfig(projection_dim=8, vision_config=vision, text_config=text)
    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=16, **SMALL)),
        "gpt2": lambda: t.GPT2LMHeadModel(gpt2),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(vocab_size=16, **SMALL)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(num_labels=3, **vision)),
        "clip": lambda: t.CLIPModel(clip),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models with tokenizers, a text, pictures and pairs."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    path = tmp_path_factory.mktemp("models")
    plain = Tokenizer(kinds.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    for name, make in models().items():
        torch.manual_seed(0)
        make().save_pretrained(path / name)
        fast.save_pretrained(path / name)
    (path / "text.txt").write_text("the cat sat on a mat and the dog saw the cat " * 40)
    return path


@pytest.fixture(scope="module")
def pictures(folder):
    image = pytest.importorskip("PIL.Image", reason="needs pillow (extra superres)")
    (folder / "pairs").mkdir()
    rows = []
    for i in range(8):
        image.new("RGB", (10, 9), (30 * i, 200 - 20 * i, 90)).save(folder / "pairs" / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "caption": f"the {WORDS[3 + i]}"}))
    (folder / "pairs" / "captions.jsonl").write_text("\n".join(rows))
    return folder / "pairs"


def shown(done):
    assert done.code == 0, done.err
    return done.json


def test_a_table_of_cuts_and_a_page(gossamer, folder, tmp_path):
    page = tmp_path / "probe.html"
    options = ("--context", 16, "--keep", "0.5", "--cuts", "depth,width,heads", "--report", page, "--json")
    found = shown(gossamer("probe", folder / "llama", "--text", folder / "text.txt", *options))
    assert [row["cut"] for row in found["rows"]] == ["depth", "width", "heads"]
    assert found["whole"]["perplexity"] > 1
    assert all(row["removed"] > 0 for row in found["rows"][:2])
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(("name", "metric"), [("gpt2", "perplexity"), ("bert", "perplexity")])
def test_other_language_models(gossamer, folder, name, metric):
    found = shown(
        gossamer("probe", folder / name, "--text", folder / "text.txt", "--context", 16, "--keep", "0.5", "--json")
    )
    assert set(found["whole"]) == {metric}
    assert all(row[metric] != found["whole"][metric] and row["removed"] > 0 for row in found["rows"])


def test_pictures_and_pairs(gossamer, folder, pictures):
    seen = shown(gossamer("probe", folder / "vit", "--images", pictures, "--samples", 4, "--keep", "0.5", "--json"))
    assert seen["whole"] == {"same class": 1.0}
    found = shown(gossamer("probe", folder / "clip", "--pairs", pictures, "--samples", 4, "--keep", "0.5", "--json"))
    assert {row["component"] for row in found["rows"]} == {"vision", "text"}
    assert set(found["whole"]) == {"image to text R@1", "text to image R@1"}


@pytest.mark.parametrize(
    ("model", "options", "code", "text"),
    [
        ("llama", ["--text", "text.txt", "--keep", "half"], 2, "numbers in (0, 1]"),
        ("llama", ["--text", "text.txt", "--context", "4096"], 3, "two sequences of 4096"),
        ("llama", [], 2, "give one of --text, --images and --pairs"),
        ("llama", ["--text", "text.txt", "--images", "."], 2, "give one of --text, --images and --pairs"),
        ("gpt2", ["--text", "none.txt"], 3, "cannot read text none.txt"),
        ("nothing", ["--text", "text.txt"], 3, "no checkpoint that transformers can load"),
    ],
)
def test_bad_input_is_named(gossamer, folder, model, options, code, text):
    done = gossamer("probe", folder / model, *options, cwd=folder)
    assert done.code == code, done.err
    assert text in done.err
