"""Probing of Hugging Face models of every known form: states by transformers itself, cuts that come back, metrics."""

import copy

import pytest
import torch
from torch import nn

from gossamer.errors import CheckpointError, ConfigError, DataError
from gossamer.experts import gather, save, upcycle
from gossamer.experts.hf import load_dense
from gossamer.experts.probing import calibrate, cut_depth, cut_heads, cut_width, find_layers, to_moe
from gossamer.experts.probing.components import ffn_parts
from gossamer.experts.probing.huggingface import (
    components_of,
    masked_perplexity,
    on_pairs,
    on_pictures,
    on_text,
    perplexity,
)

transformers = pytest.importorskip("transformers", reason="the models are transformers' own")

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TOKENS = torch.randint(0, 30, (3, 9), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=30, **SMALL)), TOKENS


def gpt2():
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=3, n_head=2, n_inner=24, n_positions=16)
    return transformers.GPT2LMHeadModel(config), TOKENS


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=30, **SMALL)), TOKENS


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config), PIXELS


def neox():
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(vocab_size=30, **SMALL)), TOKENS


def gptj():
    config = transformers.GPTJConfig(vocab_size=30, n_embd=16, n_layer=3, n_head=2, n_inner=24, rotary_dim=4)
    return transformers.GPTJForCausalLM(config), TOKENS


def falcon():
    size = {**SMALL, "ffn_hidden_size": 24}
    return transformers.FalconForCausalLM(transformers.FalconConfig(vocab_size=30, **size)), TOKENS


def opt():
    size = {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=30, **size))
    gather(model, [f"model.decoder.layers.{i}.fc1" for i in range(3)])
    return model, TOKENS


FORMS = {
    "llama": llama, "gpt2": gpt2, "bert": bert, "vit": vit, "neox": neox, "gptj": gptj, "falcon": falcon, "opt": opt
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    model, batch = FORMS[name]()
    for p in model.parameters():  # the small initial weights would leave every cosine at 1
        if p.dim() > 1:
            nn.init.normal_(p, std=0.3)
    return model.eval(), batch


def logits(model, batch):
    with torch.no_grad():
        return model(batch).logits


@pytest.mark.parametrize("name", FORMS)
def test_block_cosines_are_those_of_transformers_hidden_states(name):
    model, batch = made(name)
    (component,) = components_of(model)
    assert component.heads == 2
    found = calibrate(model, component, [batch])
    with torch.no_grad():
        states = model(batch, output_hidden_states=True).hidden_states
    assert [layer.number for layer in find_layers(model, component)] == [0, 1, 2]
    for number in (0, 1):  # the last state may be normalised
        wanted = nn.functional.cosine_similarity(states[number], states[number + 1], dim=-1).mean()
        assert found.cosine("block")[number] == pytest.approx(float(wanted), abs=1e-5)
    assert found.activity[0].shape == (24,)
    assert found.tokens[0] == states[0].shape[0] * states[0].shape[1]


@pytest.mark.parametrize("name", FORMS)
def test_cuts_change_the_output_and_come_back_bit_for_bit(name):
    model, batch = made(name)
    (component,) = components_of(model)
    before, found = logits(model, batch), calibrate(model, component, [batch])
    for make in (
        lambda: cut_depth(model, component, found, 0.6),
        lambda: cut_depth(model, component, found, 0.6, "attention"),
        lambda: cut_depth(model, component, found, 0.6, "mlp"),
        lambda: cut_width(model, component, found, 0.5),
        lambda: cut_heads(model, component, found, 0.5),
    ):
        cut = make()
        assert float((logits(model, batch) - before).abs().max()) > 1e-3, cut.what
        assert cut.removed > 0 or "heads" in cut.what
        cut.undo()
        assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("name", FORMS)
def test_a_dropped_block_passes_its_input_on(name):
    model, batch = made(name)
    (component,) = components_of(model)
    found = calibrate(model, component, [batch])
    cut = cut_depth(model, component, found, 0.6)
    dropped = int(cut.what.split("[")[1].split("]")[0])
    with torch.no_grad():
        states = model(batch, output_hidden_states=True).hidden_states
    if dropped < 2:  # the last state may be normalised
        assert torch.equal(states[dropped], states[dropped + 1])
    else:
        block = find_layers(model, component)[dropped]
        seen = {}
        layer = model.get_submodule(block.mlp if component.post else block.mlp.rpartition(".")[0])
        layer.register_forward_hook(lambda m, i, o: seen.update(x=i[0], y=o if isinstance(o, torch.Tensor) else o[0]))
        logits(model, batch)
        assert torch.equal(seen["x"], seen["y"])


@pytest.mark.parametrize("name", FORMS)
def test_a_narrow_model_is_the_one_with_those_neurons_silenced(name):
    model, batch = made(name)
    (component,) = components_of(model)
    found = calibrate(model, component, [batch])
    silenced = copy.deepcopy(model)
    cut_width(model, component, found, 0.5)
    narrow = logits(model, batch)
    for layer in find_layers(silenced, component):
        mlp = silenced.get_submodule(layer.mlp)
        down = mlp.get_submodule(ffn_parts(mlp)[2])
        weight = down.weight if isinstance(down, nn.Linear) else down.weight.T
        worst = (found.activity[layer.number] * weight.norm(dim=0)).argsort()[:12]
        with torch.no_grad():
            weight[:, worst] = 0
    assert torch.allclose(narrow, logits(silenced, batch), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_all_experts_with_a_zero_router_are_the_dense_model(name):
    model, batch = made(name)
    (component,) = components_of(model)
    before, found = logits(model, batch), calibrate(model, component, [batch])
    moe = to_moe(model, component, found, 4, 4, noise=0.0, keep_dense=())
    assert torch.allclose(logits(model, batch), before, atol=1e-4)
    moe.undo()
    assert torch.equal(logits(model, batch), before)


def test_bert_does_not_become_experts():
    model, batch = made("bert")
    (component,) = components_of(model)
    with pytest.raises(ConfigError, match="norms after the additions"):
        to_moe(model, component, calibrate(model, component, [batch]), 4, 2)


def test_patterns_that_miss_an_addition_are_found_out():
    model, batch = made("gpt2")
    (component,) = components_of(model)
    with torch.no_grad():  # a layer that gives something else than what is added to its input
        model.transformer.h[0].register_forward_hook(lambda m, i, o: o * 2)
    with pytest.raises(ConfigError, match="layer 1 of component 'all' does not read what the patterns say"):
        calibrate(model, component, [batch])


def test_other_forms_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="none of the forms llama, gpt2"):
        components_of(nn.Sequential(nn.Linear(3, 3)))


def test_both_towers_of_clip_are_components():
    text = {"vocab_size": 30, "max_position_embeddings": 9, "eos_token_id": 29, "bos_token_id": 28, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        projection_dim=8, vision_config={**SMALL, "image_size": 8, "patch_size": 4}, text_config={**SMALL, **text}
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    vision, words = components_of(model)
    assert (vision.name, words.name, vision.heads, words.heads) == ("vision", "text", 2, 2)
    with torch.no_grad():
        before = model.get_text_features(input_ids=TOKENS)
        found = calibrate(model, vision, [PIXELS], lambda m, x: m.get_image_features(pixel_values=x))
        cut = cut_depth(model, vision, found, 0.5)
        after = model.get_text_features(input_ids=TOKENS)
    assert cut.removed > 0
    assert torch.equal(getattr(before, "pooler_output", before), getattr(after, "pooler_output", after))


def test_perplexities_by_hand():
    class Uniform(nn.Module):
        def forward(self, x):
            return type("Out", (), {"logits": torch.zeros(*x.shape, 30)})()

    assert perplexity(Uniform(), TOKENS) == pytest.approx(30, rel=1e-4)
    assert masked_perplexity(Uniform(), TOKENS, 3) == pytest.approx(30, rel=1e-4)


def test_a_model_without_a_head_is_compared_with_itself(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")
    model = made("bert")[0].bert
    model.save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("a b b a " * 20)
    probe = on_text(tmp_path, tmp_path / "text.txt", 8, 2)
    assert probe.metrics["likeness"](probe.model) == pytest.approx(1.0, abs=1e-6)
    (component,) = components_of(probe.model)
    cut_width(probe.model, component, calibrate(probe.model, component, probe.batches, probe.run), 0.2)
    assert probe.metrics["likeness"](probe.model) < 0.999


def test_weights_that_are_not_there_are_not_made_up(tmp_path):
    save(upcycle(made("llama")[0]), tmp_path / "experts")
    with pytest.raises(CheckpointError, match="with experts"):
        load_dense(tmp_path / "experts")
    made("llama")[0].save_pretrained(tmp_path / "other")
    config = transformers.LlamaConfig(vocab_size=30, attention_bias=True, **SMALL)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"another architecture: missing .*bias"):
        load_dense(tmp_path / "other")


def test_a_loose_network_is_gathered(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")
    config = transformers.OPTConfig(vocab_size=30, **SMALL, ffn_dim=24, word_embed_proj_dim=16)
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("a b b a " * 20)
    probe = on_text(tmp_path, tmp_path / "text.txt", 8, 2)
    (component,) = components_of(probe.model)
    before = probe.metrics["perplexity"](probe.model)
    cut_width(probe.model, component, calibrate(probe.model, component, probe.batches, probe.run), 0.5).undo()
    assert probe.metrics["perplexity"](probe.model) == before


def test_bad_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint that transformers can load"):
        load_dense(tmp_path)
    model, _ = made("vit")
    model.save_pretrained(tmp_path / "vit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds 0 pictures"):
        on_pictures(tmp_path / "vit", tmp_path / "empty", 4)
    with pytest.raises(ConfigError, match="pairs are for CLIP"):
        on_pairs(tmp_path / "vit", tmp_path / "empty", 4)
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"no tokenizer|cannot read"):
        on_text(tmp_path / "vit", tmp_path / "text.txt", 8, 2)


def test_pictures_measure_a_classifier(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow (extra superres)")
    model, _ = made("vit")
    model.config.id2label = {0: "red", 1: "green", 2: "blue"}
    model.save_pretrained(tmp_path / "vit")
    for number, name in enumerate(("red", "green", "blue")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            colour = [20, 20, 20]
            colour[number] = 100 + 30 * i
            image.new("RGB", (10, 9), tuple(colour)).save(tmp_path / "pictures" / name / f"{i}.png")
    probe = on_pictures(tmp_path / "vit", tmp_path / "pictures", 6)
    whole = {name: metric(probe.model) for name, metric in probe.metrics.items()}
    assert whole["same class"] == 1.0
    assert 0 <= whole["accuracy"] <= 1
    (component,) = components_of(probe.model)
    with torch.no_grad():
        probe.model.classifier.bias.copy_(torch.tensor([0.0, 1e4, 0.0]))
    assert probe.metrics["accuracy"](probe.model) == pytest.approx(1 / 3)
    assert calibrate(probe.model, component, probe.batches, probe.run).tokens[0] == 6 * 5
