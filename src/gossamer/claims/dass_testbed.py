"""Two searches of DASS's small reproduction: one with a planted answer, and a chain of three edges on the digits."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.architectures.dass import Dass
from gossamer.architectures.scored_layers import SparseLinear
from gossamer.architectures.stages import Batch, Stage, dass_stages, dense_stages, hydra_prune, train_stage
from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data.dataset import generator
from gossamer.training.config import OptimConfig

SIDE = 16
PLANTED_ADAM = OptimConfig(name="adam", lr=0.02, weight_decay=0.0, schedule="constant")


# --------------------------------------------------------------------------- the planted architecture


def hadamard(side: int) -> Tensor:
    """The orthonormal Hadamard matrix (side, side); side a power of two."""
    h = torch.ones(1, 1)
    while len(h) < side:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(side)


class Planted(nn.Module):
    """Target y = H x. A = linear(x) fits exactly but needs every weight; B = linear(H x + noise) needs a diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (SparseLinear(SIDE, SIDE, bias=False) for _ in "ab")
        self.alphas = nn.ParameterList([nn.Parameter(torch.zeros(1, 2))])

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        p = self.alphas[0].softmax(-1)[0]
        out: Tensor = p[0] * self.a(x) + p[1] * self.b(turned)
        return out


class PlantedBatches:
    """Batch of a step: x (n, 16), H x + 0.15 noise, and the target H x; streams "train" and "val" share no sample."""

    def __init__(self, seed: int, stream: int, size: int = 128) -> None:
        self.seed, self.stream, self.size, self.h = seed, stream, size, hadamard(SIDE)

    def __call__(self, step: int) -> Batch:
        source = generator(self.seed, self.stream, step)
        x = torch.randn(self.size, SIDE, generator=source)
        y = x @ self.h.T
        return x, y + 0.15 * torch.randn(y.shape, generator=source), y


def planted_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(batch[0], batch[1]), batch[2])


def _discrete_mse(choice: int, seed: int) -> float:
    """Error of one candidate alone: trained dense, pruned to 1/16 by scores, fine-tuned."""
    torch.manual_seed(seed)
    layer = nn.Sequential(SparseLinear(SIDE, SIDE, bias=False))
    train = PlantedBatches(seed, 2)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[choice]), batch[2])

    train_stage(layer, Stage("dense", 300, optim=PLANTED_ADAM), loss, train, None)
    hydra_prune(layer, 1 / SIDE, loss, train, (150, 450), PLANTED_ADAM, PLANTED_ADAM)
    with torch.no_grad():
        return float(loss(layer, PlantedBatches(seed, 3, 4096)(0)))


def planted(seed: int, mutant: str | None = None, order: Literal[1, 2] = 1) -> dict[str, Any]:
    """Dense search and DASS on the planted task; cached.

    Returns:
        {"dense", "dass"} -> {"b" (softmax of B), "mse" of the chosen one after pruning, "history"}.
    """

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            found = {arm: _planted(arm, seed, mutant, order) for arm in ("dense", "dass")}
            return {arm: row | {"mse": _discrete_mse(int(row["b"] > 0.5), seed)} for arm, row in found.items()}

    settings = {"what": "planted", "seed": seed, "mutant": mutant, "order": order}
    return cell(__name__, settings, compute)


def _planted(arm: str, seed: int, mutant: str | None, order: Literal[1, 2]) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = Planted()
    stages = dense_stages(900, PLANTED_ADAM)
    if arm == "dass":
        stages = dass_stages(1 / SIDE, (300, 150, 450), PLANTED_ADAM, PLANTED_ADAM)
        if mutant == "unmasked_search":
            stages = tuple(Stage(s.name, s.steps, 1.0, s.train, s.arch, s.optim) for s in stages)
    search = Dass(stages, planted_loss, order, PLANTED_ADAM, None, reset_arch=True)
    history = search.fit(model, PlantedBatches(seed, 0), PlantedBatches(seed, 1))
    curve = [(row["step"], row["alphas"][0][1]) for row in history]
    return {"b": float(model.alphas[0].detach().softmax(-1)[0, 1]), "curve": curve}
