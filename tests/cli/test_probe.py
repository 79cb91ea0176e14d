"""`gossamer probe` on a tiny language model that the test makes."""

import json
import subprocess
import sys

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("model")
    words = {word: i for i, word in enumerate(["[UNK]", *["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog"]])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    (path / "text.txt").write_text("the cat sat on a mat and the dog saw the cat " * 40)
    return path


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gossamer.cli", "probe", *map(str, arguments)], capture_output=True, text=True
    )


def test_a_table_of_cuts_and_a_page(folder, tmp_path):
    page = tmp_path / "probe.html"
    done = run(folder, "--text", folder / "text.txt", "--context", 16, "--keep", "0.5", "--report", page, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["cut"] for row in found["rows"]] == ["depth", "width"]
    assert found["whole"]["perplexity"] > 1
    assert all(row["removed"] > 0 for row in found["rows"])
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--keep", "half"], 2, "numbers in (0, 1]"),
        (["--context", "4096"], 3, "two sequences of 4096"),
    ],
)
def test_bad_input_is_named(folder, options, code, text):
    done = run(folder, "--text", folder / "text.txt", *options)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
