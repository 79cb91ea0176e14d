"""Two small towers on generated pairs of views: a coarse attribute and two fine ones, and a narrow set to tune on.

Protocol of CLIP-MoE's small reproduction: 27 codes of A (strength 1), 8 of B (0.5), 8 of C (0.35); towers of two
residual blocks of width 48; base of 480 steps on 6000 pairs; then 400 pairs with 6 of the 27 codes, 300 steps for
every method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.experts.contrastive import TensorPairs, Training, stages, train_pairs, train_routers
from gossamer.experts.evaluate import recall
from gossamer.experts.layer import moe_layers
from gossamer.experts.routers import TopK
from gossamer.experts.upcycling import upcycle, upcycle_from

A, B, C = 27, 8, 8
SEEN = 6  # codes of A in the set to tune on
WIDTH, INPUT, LATENT, OUT, BATCH = 48, 48, 24, 24, 16
STAGES, STAGE_STEPS, ROUTER_STEPS, BASE_STEPS = 2, 120, 60, 480
NAMES = [f"{side}.blocks.{i}.ffn" for side in ("image", "text") for i in (0, 1)]
FIGURES = ("fine seen", "fine unseen", "coarse unseen")
ARMS = ("base", "direct", "upcycling", "no_mcl", "dmu")


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.ffn(self.norm(x))
        return out


class _Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUT, WIDTH)
        self.blocks = nn.Sequential(_Block(), _Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.embed(x))))
        return out


class Towers(nn.Module):
    """An image and a text tower: views (B, 48) -> embeddings (B, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = _Tower(), _Tower()

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(first), self.text(second)


def encode(model: nn.Module, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The towers as the contrastive stages call them."""
    found: tuple[Tensor, Tensor] = model(first, second)
    return found


class World:
    """The generator of one seed: codes (n, 3) -> pairs of views."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 + seed)
        codes = F.normalize(self._randn(A, 6), dim=-1)
        self.tables = (
            codes @ self._randn(6, LATENT),
            0.5 * self._randn(B, LATENT),
            0.35 * self._randn(C, LATENT),
        )
        self.mix = [self._randn(LATENT, INPUT) / LATENT**0.5 for _ in range(2)]

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def codes(self, n: int, allowed: Sequence[int] = range(A)) -> Tensor:
        """n random codes with A among the allowed ones."""
        a = torch.tensor(list(allowed))[torch.randint(len(allowed), (n,), generator=self.generator)]
        rest = [torch.randint(size, (n,), generator=self.generator) for size in (B, C)]
        return torch.stack([a, *rest], dim=1)

    def pairs(self, codes: Tensor) -> TensorPairs:
        """Views: tanh of two random mixtures of the summed embeddings, the image's with noise."""
        latent = sum(table[codes[:, i]] for i, table in enumerate(self.tables))
        noisy = latent + 0.05 * self._randn(len(codes), LATENT)
        return TensorPairs(torch.tanh(2 * noisy @ self.mix[0]), torch.tanh(2 * latent @ self.mix[1]))


@torch.no_grad()
def figures(model: nn.Module, world: World) -> dict[str, float]:
    """Recall@1 of images among 64 texts: those that share A (fine), or random ones (coarse)."""
    model.eval()
    world.generator.manual_seed(77)
    grid = torch.cartesian_prod(torch.arange(B), torch.arange(C))

    def fine(a: int) -> Tensor:
        return torch.cat([torch.full((len(grid), 1), a), grid], dim=1)

    sets = {
        "fine seen": [fine(a) for a in range(SEEN)],
        "fine unseen": [fine(a) for a in range(SEEN, A)],
        "coarse unseen": [world.codes(64, range(SEEN, A)) for _ in range(20)],
    }
    found = {}
    for name, many in sets.items():
        scores = [recall(*encode(model, *world.pairs(codes).batch(torch.arange(64))), ks=(1,)) for codes in many]
        found[name] = sum(score["first to second R@1"] for score in scores) / len(scores)
    return found


def _how(seed: int, steps: int, lr: float = 1e-3) -> Training:
    return Training(steps, BATCH, lr, weight_decay=0.01, warmup=0, scale=20.0, seed=seed)


def _base(seed: int, world: World, steps: int) -> Towers:
    model = Towers()
    pairs = world.pairs(world.codes(6000))
    train_pairs(model, pairs, encode, list(model.parameters()), _how(seed, steps, 2e-3))
    return model


def tuned(seed: int, mutant: str | None = None) -> dict[str, dict[str, float]]:
    """Figures of every arm after the same number of steps on the narrow set; cached on disk.

    Args:
        mutant: planted in the arm "dmu" only: "no_mcl" (random batches), "direct" (the tuned model in its place),
            "untrained_stages" (experts that are the base with a little noise).
    """

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _tuned(seed, mutant)

    return cell(__name__, {"what": "tuned", "seed": seed, "mutant": mutant}, compute)


def _tuned(seed: int, mutant: str | None) -> dict[str, Any]:
    world = World(seed)
    base = _base(seed, world, BASE_STEPS)
    narrow = world.pairs(world.codes(400, range(SEEN)))
    total = STAGES * STAGE_STEPS + ROUTER_STEPS
    direct = copy.deepcopy(base)
    train_pairs(direct, narrow, encode, _networks(direct), _how(seed, total))
    copies = upcycle(copy.deepcopy(base), NAMES, n_experts=STAGES + 1, router=TopK(2), seed=seed)
    train_pairs(copies, narrow, encode, _layers(copies), _how(seed, total), extra=0.01)
    made = {"base": base, "direct": direct, "upcycling": copies, "no_mcl": _mixture(base, narrow, seed, True)}
    if mutant == "direct":
        made["dmu"] = direct
    elif mutant == "untrained_stages":
        made["dmu"] = upcycle(copy.deepcopy(base), NAMES, n_experts=STAGES + 1, init="noise", noise=0.001)
    else:
        made["dmu"] = _mixture(base, narrow, seed, mutant == "no_mcl")
    return {name: figures(model, world) for name, model in made.items()}


def _networks(model: nn.Module) -> list[nn.Parameter]:
    return [p for name in NAMES for p in model.get_submodule(name).parameters()]


def _layers(model: nn.Module) -> list[nn.Parameter]:
    return [p for layer in moe_layers(model).values() for p in layer.parameters()]


def _mixture(base: Towers, narrow: TensorPairs, seed: int, shuffled: bool) -> nn.Module:
    models = stages(
        copy.deepcopy(base), narrow, encode, NAMES, _how(seed, STAGE_STEPS), count=STAGES, shuffled=shuffled
    )
    mixed = upcycle_from(models, NAMES, router=TopK(2), seed=seed)
    train_routers(mixed, narrow, encode, _how(seed, ROUTER_STEPS), balance=0.01)
    return mixed


def mechanism(seed: int, mutant: str | None = None) -> dict[str, float]:
    """Fine recall after one stage of 200 steps on all data from a weak base: cluster-pure against random batches."""

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            world = World(seed)
            base = _base(seed, world, 200)
            pairs = world.pairs(world.codes(6000))
            found = {}
            for name, shuffled in (("pure", mutant == "random_batches"), ("random", True)):
                how = _how(seed + (name == "pure"), 200)
                stage = stages(base, pairs, encode, NAMES, how, count=1, shuffled=shuffled)[1]
                found[name] = figures(stage, world)["fine unseen"]
            return found

    return cell(__name__, {"what": "mechanism", "seed": seed, "mutant": mutant}, compute)
