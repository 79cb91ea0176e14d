"""Transformers' own mixtures and ours: the same function both ways."""

import pytest
import torch

from gossamer.errors import ConfigError
from gossamer.experts import ExpertChoice, adopt, moe_report, to_mixtral, upcycle

transformers = pytest.importorskip("transformers", reason="the models are transformers' own")

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip
IDS = torch.arange(14).view(2, 7)


def llama(kind="Llama", **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZE, **more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_an_upcycled_model_becomes_a_mixtral(tmp_path, kind):
    model = upcycle(llama(kind), n_experts=4, init="noise", noise=0.5)
    made = to_mixtral(model)
    assert torch.allclose(made(IDS).logits, model(IDS).logits, atol=1e-5)
    made.save_pretrained(tmp_path)
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(IDS).logits, model(IDS).logits, atol=1e-5)
    back = adopt(again)
    assert torch.allclose(back(IDS).logits, model(IDS).logits, atol=1e-5)


def test_what_no_mixtral_can_hold():
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp is dense"):
        to_mixtral(upcycle(llama(), last=1))
    with pytest.raises(ConfigError, match="ExpertChoice"):
        to_mixtral(upcycle(llama(), router=ExpertChoice(2.0, renormalise=True)))
    with pytest.raises(ConfigError, match="without biases"):
        to_mixtral(upcycle(llama(mlp_bias=True)))
    tiny = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = transformers.OPTForCausalLM(transformers.OPTConfig(**tiny, ffn_dim=24, word_embed_proj_dim=16))
    with pytest.raises(ConfigError, match="not OPTForCausalLM"):
        to_mixtral(other)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", ["Qwen3Moe", "Olmoe"])
def test_published_mixtures_can_be_looked_at(kind, norm):
    more = {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": norm}
    model = llama(kind, **more | ({"moe_intermediate_size": 24} if kind == "Qwen3Moe" else {}))
    before = model(IDS).logits
    adopt(model)
    assert torch.allclose(model(IDS).logits, before, atol=1e-5)
    found = moe_report(model, lambda m: m(IDS))
    assert len(found["layers"]) == 2
    with pytest.raises(ConfigError, match="no expert blocks"):
        adopt(llama())
