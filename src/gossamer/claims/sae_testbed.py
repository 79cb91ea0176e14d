"""The sparse-autoencoder testbed: tokens made of known features, as the small reproduction of choice-saes takes them.

x = A D + 0.02 noise with d = 20 and 80 unit features D; feature of rank r is active with probability in proportion to
(r + 3)^-0.8, 4 of them in the mean, times a log-normal difficulty of the token (sigma 0.8); amplitudes uniform in
[0.5, 1.5]. 20,000 tokens to train, 4,096 to test; 96 dictionary features, 4 active in the mean, batches of 128, Adam
3e-3, 700 steps with 100 of warm-up and a linear fall in the last fifth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gossamer.autoencoders.budgets import fit_zipf
from gossamer.autoencoders.losses import Aux, AuxK, AuxZipf
from gossamer.autoencoders.metrics import measure, true_features_found
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import FeatureChoice, MutualChoice, Selection, TokenChoice
from gossamer.autoencoders.training import Plan, Switch, optimiser, train
from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data import Batches
from gossamer.errors import unknown
from gossamer.training.config import TrainConfig

D, TRUE, K, BATCH, STEPS = 20, 80, 4, 128, 700
WINDOW = 5 * BATCH  # tokens after which a feature is dead: 5 batches, as the BatchTopK repository


@dataclass(frozen=True)
class Tokens:
    """Generated activations: train (20000, d), test (4096, d), true features (80, d), how many each test token has."""

    train: Tensor
    test: Tensor
    truth: Tensor
    counts: Tensor


@cache
def tokens() -> Tokens:
    """The data of all arms and seeds."""
    generator = torch.Generator().manual_seed(1234)
    truth = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=generator), dim=1)
    odds = (torch.arange(1, TRUE + 1) + 3.0) ** -0.8
    odds *= 4 / odds.sum()

    def draw(count: int) -> tuple[Tensor, Tensor]:
        difficulty = (0.8 * torch.randn(count, 1, generator=generator)).exp()
        active = torch.rand(count, TRUE, generator=generator) < (odds * difficulty).clamp(max=1)
        amplitude = 0.5 + torch.rand(count, TRUE, generator=generator)
        x = (active * amplitude) @ truth + 0.02 * torch.randn(count, D, generator=generator)
        return x, active.sum(1).float()

    train_x, _ = draw(20_000)
    test_x, counts = draw(4096)
    return Tokens(train_x, test_x, truth, counts)


class Faulty(MutualChoice):
    """A selection without its idea: among the positive activations, chance decides."""

    generator = torch.Generator().manual_seed(0)

    def mask(self, z: Tensor, ranks: Tensor | None = None) -> Tensor:
        noise = torch.rand(z.shape, generator=self.generator)
        return super().mask(noise * (z > 0))


AUX: dict[str, Aux] = {"aux_k": AuxK(10, window=WINDOW), "aux_zipf": AuxZipf(0.5, 10, window=WINDOW)}
ARMS: dict[str, tuple[str, str | None]] = {
    "token": ("token", None),
    "token+aux_k": ("token", "aux_k"),
    "mutual": ("mutual", None),
    "mutual+aux_k": ("mutual", "aux_k"),
    "mutual+aux_zipf": ("mutual", "aux_zipf"),
    "feature, uniform": ("uniform", None),
    "feature, Zipf": ("zipf", None),
    "phased": ("phased", "aux_zipf"),
}


def arm(name: str, seed: int, features: int = 96, mutant: str | None = None) -> dict[str, Any]:
    """Train and measure one arm of ARMS; kept on disk.

    Args:
        mutant: "random_choice": chance selects; "token_budgets": every arm is token choice; "shared_budget": feature
            choice without budgets of features; "uniform_budgets": no Zipf law; "never_switch": phased is token choice.
    Returns:
        {"fvu", "l0", "l0_std", "dead", "corr" (L0 of a token with its number of true features), "found" (true features
        with a cosine above 0.9), "threshold_fvu", "threshold_l0", "alpha", "beta"}.
    """
    if name not in ARMS:
        raise unknown("arm", name, ARMS)
    settings = {"arm": name, "seed": seed, "features": features, "mutant": mutant}

    def compute() -> dict[str, Any]:
        with one_thread():
            return _measured(_trained(name, seed, features, mutant))

    return cell("gossamer.claims.sae_testbed", settings, compute)


def _trained(name: str, seed: int, features: int, mutant: str | None) -> SparseAutoencoder:
    kind, aux = ARMS[name]
    mutual, switch = MutualChoice(K), None
    kinds: dict[str, Selection] = {
        "token": TokenChoice(K),
        "mutual": mutual,
        "uniform": FeatureChoice(K),
        "zipf": FeatureChoice(K, "zipf"),
        "phased": mutual,
    }
    select = kinds[kind]
    if kind == "phased":
        switch = Switch(0.7, FeatureChoice(K, "zipf"))
    if kind == "zipf":  # the law is that of a trained mutual choice
        law = fit_zipf(measure(_trained("mutual", seed, features, None), [tokens().train], batch=True).density)
        select = FeatureChoice(K, "zipf", law.alpha, law.beta)
    select, switch = _fault(mutant, kind, select, switch)
    plan = Plan(AUX[aux] if aux else None, switch, centre="mean", normalise=False)
    return fitted(tokens().train, features, select, plan, seed)


def _fault(mutant: str | None, kind: str, select: Selection, switch: Switch | None) -> tuple[Selection, Switch | None]:
    if mutant == "random_choice" and kind != "token":
        return Faulty(K), None
    if mutant == "token_budgets" or (mutant == "never_switch" and kind == "phased"):
        return TokenChoice(K), None
    if mutant == "shared_budget" and kind in ("uniform", "zipf"):
        return MutualChoice(K), None
    if mutant == "uniform_budgets" and kind in ("zipf", "phased"):
        return FeatureChoice(K), None
    return select, switch


def fitted(
    x: Tensor, features: int, select: Selection, plan: Plan, seed: int, steps: int = STEPS, lr: float = 3e-3
) -> SparseAutoencoder:
    """An autoencoder trained on x by the testbed's protocol."""
    sae = SparseAutoencoder(x.shape[1], features, select, seed=seed)
    optim = optimiser(features, steps, lr, 100).model_copy(update={"warmup": 100 / steps})
    optim = optim.model_copy(update={"hold": (0.8 - optim.warmup) / (1 - optim.warmup)})
    config = TrainConfig(steps=steps, seed=seed, optim=optim, clip=1.0, device="cpu", checkpoint_every=0, log_every=0)
    train(sae, Batches([x], BATCH, seed=seed, shuffle=True), config, plan)
    return sae


def _measured(sae: SparseAutoencoder) -> dict[str, Any]:
    data = tokens()
    found = measure(sae, [data.test], batch=True)
    per_token = sae.sparse_code(data.test, batch=True).offsets.diff().float()
    both = torch.stack([per_token, data.counts])
    corr = float(torch.corrcoef(both)[0, 1]) if float(per_token.std()) > 0 else 0.0
    single = measure(sae, [data.test], batch=False)
    alpha, beta = sae.law.tolist()
    return {
        "fvu": found.fvu,
        "l0": found.l0,
        "l0_std": found.l0_std,
        "dead": found.dead,
        "corr": corr,
        "found": true_features_found(sae, data.truth),
        "threshold_fvu": single.fvu,
        "threshold_l0": single.l0,
        "threshold_dead": single.dead,
        "alpha": alpha if alpha == alpha else 0.0,
        "beta": beta,
    }
