"""Text through a language model: blocks, losses, steering, examples, the page."""

import pytest
import torch

from gossamer.autoencoders.examples import survey
from gossamer.autoencoders.hooks import activations
from gossamer.autoencoders.language import LanguageModel, load_language_model, loss_recovered, token_blocks
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.page import write_page
from gossamer.autoencoders.selection import TokenChoice
from gossamer.autoencoders.steering import edit, steered
from gossamer.data.tokenizers import ByteTokenizer
from gossamer.errors import CheckpointError, ConfigError, DataError
from gossamer.models.language import llama, save_llama

TEXT = "né à Rome, <b>il</b> partit.\n" * 60


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(llama(shape=(16,), width=16, depth=2, heads=2).eval(), ByteTokenizer(), "toy")


@pytest.fixture
def path(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def sae():
    return SparseAutoencoder(16, 32, TokenChoice(4)).eval()


def test_blocks_are_the_text_in_order_also_in_small_pieces(path, monkeypatch):
    whole = torch.cat(list(token_blocks(path, ByteTokenizer(), 16)))
    data = list(TEXT.encode())
    assert whole.flatten().tolist() == data[: len(data) // 16 * 16]
    monkeypatch.setattr("gossamer.autoencoders.language._PIECE", 7)
    assert torch.equal(torch.cat(list(token_blocks(path, ByteTokenizer(), 16))), whole)


@pytest.mark.parametrize("start", [0.5, 0.501, 0.502, 0.5005])
def test_a_part_may_begin_within_a_letter(path, start):
    tokens = torch.cat(list(token_blocks(path, ByteTokenizer(), 8, part=(start, 1.0)))).flatten().tolist()
    assert bytes(tokens) in TEXT.encode()


def test_loss_recovered_is_one_for_a_perfect_dictionary(model, path):
    sae = SparseAutoencoder(16, 32, TokenChoice(32)).eval()
    with torch.no_grad():
        sae.encoder.copy_(torch.cat([torch.eye(16), -torch.eye(16)]))
        sae.decoder.copy_(torch.cat([torch.eye(16), -torch.eye(16)]))
    found = loss_recovered(model, "blocks.0", sae, list(token_blocks(path, ByteTokenizer(), 16))[:3])
    assert found["recovered"] == pytest.approx(1.0, abs=1e-4)
    assert found["loss"] == pytest.approx(found["loss_with_sae"], abs=1e-5)


def test_edits_do_what_they_say(sae):
    sae.scale_in.fill_(2.0)
    sae.scale_out.fill_(2.0)
    x = torch.randn(3, 5, 16)
    z = sae.encode(x, batch=False)
    own = int(z.sum((0, 1)).argmax())
    row = sae.decoder[own] / 2
    assert torch.allclose(edit(sae, add={own: 3.0})(x), x + 3 * row, atol=1e-6)
    assert torch.allclose(edit(sae, ablate=[own])(x), x - z[..., own, None] * row, atol=1e-6)
    assert torch.allclose(edit(sae, set_to={own: 1.0})(x), x + (1 - z[..., own, None]) * row, atol=1e-6)


def test_steering_changes_the_running_model_and_only_while_it_lasts(model, sae):
    tokens = torch.tensor([[1, 2, 3]])
    before = model.logits(tokens)
    with steered(model.module, "blocks.0", sae, add={3: 50.0}):
        assert not torch.allclose(model.logits(tokens), before)
    assert torch.equal(model.logits(tokens), before)
    assert model.continued("Ro", 5, 0.0) == model.continued("Ro", 5, 0.0)


def test_the_survey_finds_the_largest_activations(model, path, sae, tmp_path):
    blocks = list(token_blocks(path, ByteTokenizer(), 16, batch=3))
    found = survey(model, "blocks.0", sae, iter(blocks), features=5, examples=3, around=4)
    z = torch.cat([sae.encode(activations(model.module, b, "blocks.0")[0]) for b in blocks]).detach()
    assert torch.allclose(found.density, (z > 0).float().mean((0, 1)))
    for feature in found.features:
        top = z[..., feature.index].amax(1).topk(3).values
        peaks = [example.values[example.peak] for example in feature.examples]
        assert peaks == pytest.approx([float(v) for v in top if v > 0], abs=1e-5)
        assert sum(feature.heights) > 0
        assert len(feature.promotes) == 6
    page = write_page(tmp_path / "page.html", "Features <x>", found, {"FVU": "0.1"}, "gossamer sae browse").read_text()
    assert "http" not in page
    assert "Features &lt;x&gt;" in page
    assert page.count("<section data-index") == 5
    chosen = survey(model, "blocks.0", sae, iter(blocks), features=[7, 2])
    assert [feature.index for feature in chosen.features] == [7, 2]


def test_models_come_from_hugging_face_folders(model, tmp_path):
    save_llama(model.module, tmp_path)
    loaded = load_language_model(f"hf:{tmp_path}")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(loaded.logits(tokens), model.logits(tokens))
    assert loaded.tokenizer.size == 256


def test_other_architectures_come_through_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=256, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_language_model(f"hf:{tmp_path}")
    found = activations(model.module, torch.arange(8).view(1, 8), "transformer.h.0")[0]
    assert found.shape == (1, 8, 16)
    assert model.loss(torch.arange(8).view(1, 8)) > 0


def test_bad_requests_are_named(model, path, sae, tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        load_language_model(f"hf:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="holds no block of 999999 tokens"):
        list(token_blocks(path, ByteTokenizer(), 999999))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe abc" * 9)
    with pytest.raises(DataError, match="cannot read text file"):
        list(token_blocks(tmp_path / "bad.txt", ByteTokenizer(), 4))
    with pytest.raises(ConfigError, match="choose some of 0"):
        edit(sae, add={32: 1.0})
    with pytest.raises(ConfigError, match="a transcoder"):
        edit(SparseAutoencoder(16, 32, TokenChoice(4), d_out=4), add={1: 1.0})
    with pytest.raises(ConfigError, match="the autoencoder has 0"):
        survey(model, "blocks.0", sae, token_blocks(path, ByteTokenizer(), 16), features=[99])
    with pytest.raises(DataError, match="no text to find examples"):
        survey(model, "blocks.0", sae, [])
    with pytest.raises(ConfigError, match="prompt is empty"):
        model.continued("", 3)
