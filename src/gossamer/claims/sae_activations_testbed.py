"""Real activations for sparse autoencoders: a small language model trained here on TinyShakespeare, an MLP on digits.

Language: a Llama of 4 blocks of width 64 on bytes, 300 steps of 8 x 128 with AdamW; the output of its second block is
coded with 256 features in batches of 256, 300 steps, k = 4, 8, 16 for every kind. Digits: the 64 hidden units of a
perceptron after ReLU, 192 features, k = 6.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.autoencoders.curves import VARIANTS, Budget, fit_variant
from gossamer.autoencoders.hooks import activations
from gossamer.autoencoders.language import LanguageModel, loss_recovered, token_blocks
from gossamer.autoencoders.metrics import measure
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import MutualChoice
from gossamer.autoencoders.training import optimiser, train
from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data import Batches
from gossamer.data.digits import digits
from gossamer.data.locate import find
from gossamer.data.text import tiny_shakespeare
from gossamer.data.tokenizers import ByteTokenizer
from gossamer.models.language import llama
from gossamer.sparsify.recipe import Recipe
from gossamer.training import LanguageModelling, TrainConfig
from gossamer.training.config import OptimConfig
from gossamer.training.loop import fit

BUDGETS = (4, 8, 16)
MODULE, CONTEXT = "blocks.1", 128


KINDS = tuple(VARIANTS)


@dataclass(frozen=True)
class Material:
    """A trained model and activations of it: train (n, d), test (m, d), held-out blocks of tokens."""

    model: LanguageModel
    train: Tensor
    test: Tensor
    held: list[Tensor]


def _language_model() -> nn.Module:
    """The Llama, trained once; its weights are kept on disk."""

    def compute() -> dict[str, Any]:
        data = replace(tiny_shakespeare(context=CONTEXT, batch_size=8), test=None)  # type: ignore[arg-type]
        optim = OptimConfig(name="adamw", lr=3e-3, weight_decay=0.01, warmup=0.05)
        config = TrainConfig(steps=300, optim=optim, clip=1.0, device="cpu", checkpoint_every=0, log_every=0)
        fit(LanguageModelling(module), data, Recipe(), config)
        return {"weights": base64.b64encode(save(module.state_dict())).decode("ascii")}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = llama(shape=(CONTEXT,), width=64, depth=4, heads=4)
        find("tiny-shakespeare", "input.txt")  # raises where the text is missing, also if the weights are there
        kept = cell("gossamer.claims.sae_activations_testbed", {"model": "shakespeare"}, compute)
    module.load_state_dict(load(base64.b64decode(kept["weights"])))
    return module.eval()


@cache
def shakespeare() -> Material:
    """The language model and its activations. Raises DataError without the text."""
    module = _language_model()
    model = LanguageModel(module, ByteTokenizer(), "shakespeare")
    path = find("tiny-shakespeare", "input.txt") / "input.txt"
    blocks = islice(token_blocks(path, model.tokenizer, CONTEXT, 16, (0.0, 0.9)), 32)
    held = list(islice(token_blocks(path, model.tokenizer, CONTEXT, 16, (0.9, 1.0)), 2))
    rows = [torch.cat([activations(module, b, MODULE)[0].flatten(0, 1) for b in part]) for part in (blocks, held)]
    return Material(model, rows[0], rows[1], held)


def language_arm(name: str, k: int, seed: int) -> dict[str, Any]:
    """One variant at one budget on the language model's activations; kept on disk.

    Returns:
        {"fvu", "l0", "l0_std", "dead" (by thresholds, one token at a time), "batch_fvu", "batch_l0", "loss",
        "loss_with_sae", "loss_ablated", "recovered"}.
    """

    def compute() -> dict[str, Any]:
        with one_thread():
            material = shakespeare()
            data = Batches([material.train], 256, seed=seed, shuffle=True)
            sae = fit_variant(name, k, data, Budget(256, 300, seed=seed, device="cpu"))
            single, batch = (measure(sae, [material.test], batch=over) for over in (False, True))
            own = loss_recovered(material.model, MODULE, sae, material.held)
        figures = {"fvu": single.fvu, "l0": single.l0, "l0_std": single.l0_std, "dead": single.dead}
        return figures | {"batch_fvu": batch.fvu, "batch_l0": batch.l0} | own

    return cell("gossamer.claims.sae_activations_testbed", {"arm": name, "k": k, "seed": seed}, compute)


@cache
def hidden_digits() -> tuple[Tensor, Tensor]:
    """Hidden activations (1000, 64) and (797, 64) of a perceptron trained on the digits."""
    data = digits(batch_size=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(200):
            x, y = data.train.batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    train_x, test_x = (activations(model, batches.tensors()[0], "2")[0] for batches in (data.train, data.test))
    return train_x, test_x


def digits_arm(name: str, seed: int) -> dict[str, Any]:
    """One variant on the hidden activations of the digits' perceptron, k = 6, selection over the batch."""

    def compute() -> dict[str, Any]:
        with one_thread():
            train_x, test_x = hidden_digits()
            data = Batches([train_x], 100, seed=seed, shuffle=True)
            sae = fit_variant(name, 6, data, Budget(192, 400, seed=seed, device="cpu"))
            return measure(sae, [test_x], batch=True).as_dict()

    return cell("gossamer.claims.sae_activations_testbed", {"digits": name, "seed": seed}, compute)


def first_steps(features: int = 24_576, d: int = 768, k: int = 32, steps: int = 2) -> dict[str, float]:
    """The first steps of the full-size autoencoder (GPT-2 small's width) on noise: the loss falls, nothing is NaN."""
    x = torch.randn(256, d, generator=torch.Generator().manual_seed(0))
    with one_thread():
        sae = SparseAutoencoder(d, features, MutualChoice(k))
        config = TrainConfig(steps=steps, optim=optimiser(features, 50_000), clip=1.0, device="cpu", checkpoint_every=0)
        train(sae, Batches([x], 256), config)
        found = measure(sae, [x], batch=True)
    return {"fvu": found.fvu, "l0": found.l0}
