"""A small unified model on digits: understanding (class of a picture) and generation (flow matching of patches)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.experts.probing import Calibration, Component, calibrate, cut_depth, cut_width, to_moe, tune
from gossamer.metrics.classification import accuracy

LAYERS, WIDTH, HIDDEN, HEADS, PATCHES = 6, 32, 64, 4, 16
STEPS, TUNING, BATCH = 500, 120, 32
UND = Component("und", r"blocks\.(\d+)\.und\.norm1", r"blocks\.(\d+)\.und\.out", r"blocks\.(\d+)\.und\.mlp", HEADS)
GEN = Component("gen", r"blocks\.(\d+)\.gen\.norm1", r"blocks\.(\d+)\.gen\.out", r"blocks\.(\d+)\.gen\.mlp", HEADS)
Task = Callable[["Unified", Any], Any]


class FFN(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Stream(nn.Module):
    """Norms, projections and feed-forward of one stream of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), FFN()

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of (B, heads, tokens, width of a head)."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual additions."""
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Block(nn.Module):
    """Mixture of transformers: context tokens attend to each other, generated ones to both."""

    def __init__(self) -> None:
        super().__init__()
        self.und, self.gen = Stream(), Stream()

    def forward(self, und: Tensor, gen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.und.heads(und)
        done = self.und.finish(und, F.scaled_dot_product_attention(q, k, v))
        if gen is None:
            return done, None
        gq, gk, gv = self.gen.heads(gen)
        attended = F.scaled_dot_product_attention(gq, torch.cat([k, gk], 2), torch.cat([v, gv], 2))
        return done, self.gen.finish(gen, attended)


class Unified(nn.Module):
    """Understanding: 16 patch tokens to a class. Generation: class token and noisy patches to a velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.draw = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.place = nn.Parameter(0.1 * torch.randn(PATCHES, WIDTH))
        self.label, self.prompt = nn.Embedding(10, WIDTH), nn.Parameter(0.1 * torch.randn(2, WIDTH))
        self.time = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm_und, self.norm_gen = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.classify, self.velocity = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 4)

    def understand(self, patches: Tensor) -> Tensor:
        """(B, 16, 4) -> logits (B, 10)."""
        und = self.see(patches) + self.place
        for block in self.blocks:
            und, _ = block(und, None)
        logits: Tensor = self.classify(self.norm_und(und.mean(1)))
        return logits

    def generate(self, labels: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """(B,), (B, 16, 4), (B,) -> velocity (B, 16, 4)."""
        waves = t[:, None] * math.pi * 2.0 ** torch.arange(4)
        moment = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        und = torch.cat([self.label(labels)[:, None], self.prompt.expand(len(labels), -1, -1)], 1)
        gen: Tensor | None = self.draw(noisy) + self.place + moment[:, None]
        for block in self.blocks:
            und, gen = block(und, gen)
        velocity: Tensor = self.velocity(self.norm_gen(gen))
        return velocity


def patches() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test digits in [-1, 1] as (n, 16, 4) patches of 2 x 2, and labels; 1400 train."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32)[order] / 8 - 1
    y = torch.tensor(digits.target, dtype=torch.long)[order]
    cut = x.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(x), PATCHES, 4)
    return cut[:1400], y[:1400], cut[1400:], y[1400:]


def flow_loss(model: Unified, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean squared error of the velocity e - x at x_t = (1 - t) x + t e."""
    x, y, e, t = batch
    mixed = (1 - t[:, None, None]) * x + t[:, None, None] * e
    return F.mse_loss(model.generate(y, mixed, t), e - x)


def noisy(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, ...]:
    """A batch for `flow_loss` with fixed noise and times."""
    rng = torch.Generator().manual_seed(seed)
    return x, y, torch.randn(x.shape, generator=rng), torch.rand(len(x), generator=rng)


def draws(x: Tensor, y: Tensor, steps: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches for `flow_loss`, a function of the seed."""
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        picked = torch.randint(len(x), (BATCH,), generator=rng)
        yield noisy(x[picked], y[picked], seed * 100_003 + step)


def train(seed: int) -> Unified:
    """AdamW 2e-3, cosine, 500 steps; understanding weighs 0.2."""
    torch.manual_seed(seed)
    x, y, _, _ = patches()
    model = Unified()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for batch in draws(x, y, STEPS, seed):
        loss = flow_loss(model, batch) + 0.2 * F.cross_entropy(model.understand(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def measure(model: Unified) -> dict[str, float]:
    """{"mse": flow error on the test digits, "understanding": % right, "drawn": % of 100 drawn digits that an SVC
    trained on real ones takes for what was asked}."""
    from sklearn.svm import SVC

    x, y, test_x, test_y = patches()
    with torch.no_grad():
        mse = float(flow_loss(model, noisy(test_x, test_y, 7)))
        right = 100 * accuracy(model.understand(test_x), test_y)
        labels = torch.arange(100) % 10
        drawn = torch.randn(100, PATCHES, 4, generator=torch.Generator().manual_seed(8))
        for step in range(10, 0, -1):
            drawn = drawn - 0.1 * model.generate(labels, drawn, torch.full((100,), step / 10))
    judge = SVC().fit(x.flatten(1).numpy(), y.numpy())
    return {"mse": mse, "understanding": right, "drawn": 100 * judge.score(drawn.flatten(1).numpy(), labels.numpy())}


def _seen(model: Unified, component: Component, task: str) -> Calibration:
    """Calibration on 256 pictures by calls of one task."""
    x, y, _, _ = patches()
    batch = noisy(x[:256], y[:256], 5)
    if task == "understanding":
        return calibrate(model, component, [batch], lambda m, b: m.understand(b[0]))  # type: ignore[operator]
    return calibrate(model, component, [batch], flow_loss)  # type: ignore[arg-type]


def study(seed: int, mutant: str | None = None) -> dict[str, Any]:
    """Train one model and try all cuts and adaptations on copies of it; cached on disk.

    mutant: "random_scores" of neurons and layers; "no_cut": cuts keep everything; "no_tuning".
    """

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            return _study(seed, mutant)

    return cell(__name__, {"seed": seed, "mutant": mutant}, compute)


def _study(seed: int, mutant: str | None) -> dict[str, Any]:
    model = train(seed)
    rows: dict[str, Any] = {"dense": measure(model)}
    keep = {"depth": 1.0, "width": 1.0} if mutant == "no_cut" else {"depth": 0.5, "width": 0.5}
    for component, tasks in ((UND, ("generation", "understanding")), (GEN, ("generation",))):
        for task in tasks:
            found = _seen(model, component, task)
            if mutant == "random_scores":
                found = _random(found, seed)
            for cut, act in (("depth", cut_depth), ("width", cut_width)):
                done = act(model, component, found, keep[cut])
                rows[f"{component.name} {cut}, {task} scores"] = measure(model)
                done.undo()
    rows["restored"] = measure(model)
    return rows | _ladder(model, seed, mutant)


def _random(found: Calibration, seed: int) -> Calibration:
    rng = torch.Generator().manual_seed(seed)
    cosines = {n: torch.rand(v.shape, generator=rng) for n, v in found.cosines.items()}
    activity = {n: torch.rand(v.shape, generator=rng) for n, v in found.activity.items()}
    return Calibration(cosines, activity, found.heads, found.tokens)


def _ladder(model: Unified, seed: int, mutant: str | None) -> dict[str, Any]:
    """Experts of the generation part: all active, half untuned, routers tuned, all tuned; and a static cut, tuned."""
    x, y, _, _ = patches()
    found = _seen(model, GEN, "generation")
    rows: dict[str, Any] = {}

    def batches() -> Iterator[tuple[Tensor, ...]]:
        return draws(x, y, 0 if mutant == "no_tuning" else TUNING, seed + 50)

    torch.manual_seed(seed)
    whole = to_moe(copy.deepcopy(model), GEN, found, 8, 8, noise=0.0, keep_dense=())
    rows["8 of 8 experts, zero router"] = measure(whole.model)  # type: ignore[arg-type]
    for name, phase, lr in (("untuned", None, 0.0), ("router tuned", "router", 3e-2), ("all tuned", "full", 1e-3)):
        torch.manual_seed(seed)
        half: Any = to_moe(copy.deepcopy(model), GEN, found, 8, 4, keep_dense=()).model
        if name == "all tuned":
            tune(half, flow_loss, batches(), phase="router", lr=3e-2)  # type: ignore[arg-type]
        if phase is not None:
            tune(half, flow_loss, batches(), phase=phase, lr=lr)  # type: ignore[arg-type]
        rows[f"4 of 8 experts, {name}"] = measure(half.eval())
    narrow: Any = cut_width(copy.deepcopy(model), GEN, found, 0.5).model
    optimizer = torch.optim.AdamW([p for m in narrow.blocks for p in m.gen.mlp.parameters()], lr=1e-3)
    for _ in range(2):  # as many steps as both phases together
        for batch in batches():
            optimizer.zero_grad()
            flow_loss(narrow, batch).backward()
            optimizer.step()
    rows["static half, tuned"] = measure(narrow.eval())
    return rows
