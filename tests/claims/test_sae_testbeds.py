"""The testbeds of the sparse-autoencoder claims, with few steps; whole claims run in reproduce."""

from dataclasses import replace

import pytest
import torch

from gossamer.autoencoders.language import LanguageModel
from gossamer.claims import cells, sae_activations_testbed, sae_testbed
from gossamer.data.tokenizers import ByteTokenizer
from gossamer.errors import ConfigError
from gossamer.models.language import llama


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sae_testbed, "STEPS", 20)


def test_the_generated_tokens_are_what_the_protocol_says():
    data = sae_testbed.tokens()
    assert data.train.shape == (20_000, 20)
    assert torch.allclose(data.truth.norm(dim=1), torch.ones(80))
    assert 3.5 < float(data.counts.mean()) < 6  # 4 before the difficulty, whose mean is above 1
    assert float(data.counts.std()) > 2


@pytest.mark.parametrize("mutant", [None, "random_choice", "token_budgets", "shared_budget", "uniform_budgets"])
def test_arms_spend_the_same_budget(mutant, monkeypatch):
    monkeypatch.setattr(sae_testbed.fitted, "__defaults__", (20, 3e-3))
    for name in ("mutual", "feature, Zipf"):
        row = sae_testbed.arm(name, 0, mutant=mutant)
        assert row["l0"] <= 4.0
    assert row == sae_testbed.arm(name, 0, mutant=mutant)  # from the cell


def test_an_unknown_arm_is_named():
    with pytest.raises(ConfigError, match="did you mean 'mutual'"):
        sae_testbed.arm("mutal", 0)


def test_every_kind_runs_on_a_language_model(monkeypatch):
    torch.manual_seed(0)
    model = LanguageModel(llama(shape=(32,), width=64, depth=2, heads=2).eval(), ByteTokenizer(), "toy")
    held = [torch.randint(256, (4, 32))]
    made = sae_activations_testbed.Material(model, torch.randn(2048, 64), torch.randn(512, 64), held)
    monkeypatch.setattr(sae_activations_testbed, "shakespeare", lambda: made)
    whole = sae_activations_testbed.fit_variant

    def short(name, k, data, budget):
        return whole(name, k, data, replace(budget, steps=6))

    monkeypatch.setattr(sae_activations_testbed, "fit_variant", short)
    for name in sae_activations_testbed.KINDS:
        row = sae_activations_testbed.language_arm(name, 4, 0)
        assert row["fvu"] > 0
        assert row["loss"] > 0


def test_digits_have_hidden_activations():
    train, test = sae_activations_testbed.hidden_digits()
    assert train.shape == (1000, 64)
    assert test.shape == (797, 64)
    assert float((train > 0).float().mean()) > 0.1
