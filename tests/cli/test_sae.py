"""`gossamer sae`: train, browse and steer in processes, and what they say of bad input."""

import json

import pytest
import torch

from gossamer.models.language import llama, save_llama


@pytest.fixture(scope="module")
def made(gossamer, tmp_path_factory):
    """A small model, a text, and an autoencoder of it."""
    folder = tmp_path_factory.mktemp("sae")
    torch.manual_seed(0)
    save_llama(llama(shape=(16,), width=16, depth=2, heads=2), folder / "model")
    (folder / "text.txt").write_text("To be, or not to be: that is the question.\n" * 150)
    done = gossamer("sae", "train", *_common(folder), "--saelens", folder / "lens", "--json")
    assert done.code == 0, done.err
    assert done.json["l0"] > 0
    assert done.json["loss"] > 0
    return folder


def _common(folder, **options):
    words = {"model": f"hf:{folder / 'model'}", "text": folder / "text.txt", "module": "blocks.0", "features": 48}
    words |= {"k": 4, "steps": 30, "batch": 128, "context": 16, "lr": 0.003, "output": folder / "sae"} | options
    return [part for name, value in words.items() for part in (f"--{name}", value)]


def test_the_page_and_the_steering(gossamer, made):
    page = gossamer("sae", "browse", "--sae", made / "sae", "--features", "5", "-o", made / "page.html", "--json")
    assert page.code == 0, page.err
    assert len(page.json["features"]) == 5
    assert "Density of features" in (made / "page.html").read_text()
    feature = page.json["features"][0]
    words = ("--prompt", "To be", "--tokens", 8, "--temperature", 0, "--json")
    done = gossamer("sae", "steer", "--sae", made / "sae", "--add", f"{feature}=500", "--ablate", 3, *words)
    assert done.code == 0, done.err
    assert done.json["plain"].startswith("To be")
    assert done.json["plain"] != done.json["steered"]


def test_saelens_files_are_taken_too(gossamer, made):
    config = json.loads((made / "lens" / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"
    words = ("--sae", made / "lens", "--prompt", "To", "--set", "2=4.0", "--tokens", 3)
    known = gossamer("sae", "steer", *words)
    assert known.code == 0, known.err
    config["metadata"]["model_name"] = "some-model-of-theirs"
    (made / "lens" / "cfg.json").write_text(json.dumps(config))
    lacking = gossamer("sae", "steer", *words)
    assert lacking.code == 2
    assert "does not say which model it is for; give --model" in lacking.err
    done = gossamer("sae", "steer", *words, "--model", f"hf:{made / 'model'}", "--module", "blocks.0")
    assert done.code == 0, done.err
    assert "--- steered" in done.out


def test_a_run_can_be_resumed_and_is_not_replaced_silently(gossamer, made):
    assert gossamer("sae", "train", *_common(made)).code == 2
    done = gossamer("sae", "train", *_common(made), "--resume", "--json")
    assert done.code == 0, done.err
    changed = gossamer("sae", "train", *_common(made, k=5), "--resume")
    assert changed.code == 2
    assert "sae.select.k was 4.0, is now 5.0" in changed.err


def _curves(folder, model, module, **options):
    words = {"model": f"hf:{model}", "text": folder / "text.txt", "module": module, "features": 48, "k": "3,6"}
    words |= {"kinds": "TopK,mutual,JumpReLU", "steps": 20, "batch": 128, "context": 16, "output": folder / "curves"}
    return ["sae", "curves", *(part for name, value in (words | options).items() for part in (f"--{name}", value))]


def test_curves_of_a_hugging_face_checkpoint(gossamer, made, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the checkpoint is transformers' own")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    words = _curves(made, tmp_path / "gpt2", "transformer.h.0", output=tmp_path / "curves")
    done = gossamer(*words, "--json")
    assert done.code == 0, done.err
    rows = done.json["rows"]
    assert [(row["kind"], row["k"]) for row in rows] == [
        (kind, k) for kind in ("TopK", "mutual", "JumpReLU") for k in (3.0, 6.0)
    ]
    assert all(0 < row["fvu"] < 2 and "recovered" in row for row in rows)
    page = (tmp_path / "curves" / "curves.html").read_text()
    assert page.count("<polyline") == 3
    again = gossamer(*words, "--json")
    assert again.json == done.json
    assert "collecting" not in again.err
    other = gossamer(*_curves(made, tmp_path / "gpt2", "transformer.h.0", output=tmp_path / "curves", steps=21))
    assert other.code == 3
    assert "holds curves with steps = 20, now it is 21" in other.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"kinds": "topk"}, 2, "did you mean 'TopK'"),
        ({"k": "few"}, 2, "--k takes numbers"),
        ({"k": "64"}, 2, "at most the 48 features"),
        ({"kinds": "feature", "batch": 8}, 2, "raise the batch size"),
    ],
)
def test_bad_curves_are_one_line(gossamer, made, tmp_path, options, code, message):
    done = gossamer(*_curves(made, made / "model", "blocks.0", output=tmp_path / "new", **options))
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"kind": "mutal"}, 2, "did you mean 'mutual'"),
        ({"k": 0}, 2, "k=0.0: needs a number above 0"),
        ({"k": 49}, 2, "at most the 48 features"),
        ({"module": "block.0"}, 2, "did you mean 'blocks.0'"),
        ({"aux": "auxk"}, 2, "did you mean 'aux_k'"),
        ({"prefixes": "4,x"}, 2, "whole numbers with commas"),
        ({"text": "nothing.txt"}, 3, "there is no text 'nothing.txt'"),
        ({"model": "hf:nowhere"}, 3, "holds no model"),
        ({"kind": "feature", "batch": 8}, 2, "raise the batch size"),
    ],
)
def test_bad_input_is_one_line(gossamer, made, tmp_path, options, code, message):
    done = gossamer("sae", "train", *_common(made, output=tmp_path / "new", **options))
    assert done.code == code
    assert message in done.err


def test_features_are_checked(gossamer, made):
    done = gossamer("sae", "steer", "--sae", made / "sae", "--prompt", "To", "--add", "48=1")
    assert done.code == 2
    assert "choose some of 0 ... 47" in done.err
    done = gossamer("sae", "steer", "--sae", made / "sae", "--prompt", "To", "--add", "three")
    assert "FEATURE=NUMBER" in done.err
